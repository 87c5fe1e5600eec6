// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sleepSample is how often the clocks are compared.
	sleepSample = 5 * time.Second

	// sleepLeast is how far they must have come apart: reading both takes no time to
	// speak of.
	sleepLeast = 2 * time.Second
)

// WatchSleep calls woke after each sleep of the machine, with how long that was, until
// ctx ends. Connections may be dead then, and times that were waited for may have
// passed: Go's timers stand still meanwhile.
func WatchSleep(ctx context.Context, woke func(time.Duration)) {
	watchSleep(ctx, sleptSoFar, woke)
}

func watchSleep(ctx context.Context, slept func() time.Duration, woke func(time.Duration)) {
	tick := time.NewTicker(sleepSample)
	defer tick.Stop()
	last := slept()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := slept()
		if now-last >= sleepLeast {
			woke(now - last)
		}
		last = now
	}
}

// sleptSoFar is what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC, which does not run
// while the machine sleeps. That of the day says nothing: it is set by others.
func sleptSoFar() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}
