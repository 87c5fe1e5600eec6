// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchSleep(t *testing.T) {
	if a, b := sleptSoFar(), sleptSoFar(); b-a >= sleepLeast || a-b >= sleepLeast {
		t.Errorf("awake, the clocks are %v and %v apart", a, b)
	}
	synctest.Test(t, func(t *testing.T) {
		// As seen at each sample: a jitter, an hour, and 3 seconds.
		samples := []time.Duration{0, time.Second, time.Second, time.Hour, time.Hour + 3*time.Second}
		var woke []time.Duration
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		watchSleep(ctx, func() time.Duration {
			now := samples[0]
			if samples = samples[1:]; len(samples) == 0 {
				stop()
				samples = []time.Duration{now}
			}
			return now
		}, func(d time.Duration) { woke = append(woke, d) })
		if want := []time.Duration{time.Hour - time.Second, 3 * time.Second}; !slices.Equal(woke, want) {
			t.Errorf("woke %v, want %v", woke, want)
		}
	})
}
