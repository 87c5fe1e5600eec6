// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
)

// percent is a priority of 100 hosts.
func percent(healthy, degraded int) balance.Counts {
	return balance.Counts{Total: 100, Healthy: healthy, Degraded: degraded}
}

// TestSpread holds the tables of Envoy's documentation on priority levels,
// degraded endpoints and the panic threshold.
func TestSpread(t *testing.T) {
	type (
		C = balance.Counts
		S = balance.Share
	)
	tests := []struct {
		name      string
		counts    []C
		threshold float64
		want      []S
	}{
		{"one priority, all healthy", []C{percent(100, 0)}, 0, []S{{Healthy: 100}}},
		{"overprovisioned", []C{percent(72, 0), percent(100, 0)}, 0, []S{{Healthy: 100}, {}}},
		{"just under", []C{percent(71, 0), percent(100, 0)}, 0, []S{{Healthy: 99}, {Healthy: 1}}},
		{"half", []C{percent(50, 0), percent(100, 0)}, 0, []S{{Healthy: 70}, {Healthy: 30}}},
		{"quarter", []C{percent(25, 0), percent(100, 0)}, 0, []S{{Healthy: 35}, {Healthy: 65}}},
		{"fail-over", []C{percent(0, 0), percent(100, 0)}, 0, []S{{}, {Healthy: 100}}},
		{"three priorities", []C{percent(25, 0), percent(25, 0), percent(100, 0)}, 0, []S{{Healthy: 35}, {Healthy: 35}, {Healthy: 30}}},
		{"not enough anywhere", []C{percent(20, 0), percent(20, 0), percent(10, 0)}, 0, []S{{Healthy: 40}, {Healthy: 40}, {Healthy: 20}}},
		{"rest of a division", []C{percent(20, 0), percent(20, 0), percent(20, 0)}, 0, []S{{Healthy: 34}, {Healthy: 33}, {Healthy: 33}}},
		{"empty priority", []C{{}, percent(100, 0)}, 0, []S{{}, {Healthy: 100}}},

		{"degraded unused", []C{percent(71, 0)}, 0, []S{{Healthy: 100}}},
		{"degraded takes the rest", []C{percent(71, 29)}, 0, []S{{Healthy: 99, Degraded: 1}}},
		{"mostly degraded", []C{percent(25, 65)}, 0, []S{{Healthy: 35, Degraded: 65}}},
		{"only degraded", []C{percent(0, 10)}, 0, []S{{Degraded: 100}}},
		{"a healthy priority before degraded ones", []C{percent(50, 50), percent(100, 0)}, 0, []S{{Healthy: 70}, {Healthy: 30}}},

		{"nothing left, panic off", []C{percent(0, 0), percent(0, 0)}, 0, []S{{}, {}}},
		{"no panic while others bear it", []C{percent(25, 0), percent(100, 0)}, 50, []S{{Healthy: 35}, {Healthy: 65}}},
		{"no panic at 100 % in total", []C{percent(50, 0), percent(50, 0)}, 50, []S{{Healthy: 70}, {Healthy: 30}}},
		{"all panic", []C{percent(25, 0), percent(25, 0)}, 50, []S{{Healthy: 50, Panic: true}, {Healthy: 50, Panic: true}}},
		{"one panics", []C{percent(5, 0), percent(65, 0)}, 50, []S{{Healthy: 8, Panic: true}, {Healthy: 92}}},
		{"total panic by number", []C{{Total: 1}, {Total: 2}}, 50, []S{{Healthy: 34, Panic: true}, {Healthy: 66, Panic: true}}},
		{"total panic, first empty", []C{{}, {Total: 2}}, 50, []S{{Panic: true}, {Healthy: 100, Panic: true}}},

		// 300 endpoints must not round to nothing.
		{"many hosts", []C{{Total: 300, Healthy: 299}}, 0, []S{{Healthy: 100}}},
		{"one of very many", []C{{Total: 100_000, Healthy: 1}}, 0, []S{{Healthy: 100}}},
		{"one of very many, further down", []C{{Total: 5}, {Total: 100_000, Degraded: 1}}, 0, []S{{}, {Degraded: 100}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := balance.Spread(tt.counts, 140, tt.threshold)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSpreadSums: whatever the health, all of the load goes somewhere, if
// anything is available at all.
func TestSpreadSums(t *testing.T) {
	for _, total := range []int{1, 3, 7, 200, 997} {
		for healthy := 0; healthy <= total; healthy += max(total/13, 1) {
			for degraded := 0; degraded+healthy <= total; degraded += max(total/11, 1) {
				c := []balance.Counts{{Total: total, Healthy: healthy, Degraded: degraded}, {Total: 10, Healthy: 1}}
				var sum uint32
				for _, s := range balance.Spread(c, 140, 0) {
					sum += s.Healthy + s.Degraded
				}
				if sum != 100 {
					t.Error(fmt.Errorf("%+v: load sums up to %d", c, sum))
				}
			}
		}
	}
}
