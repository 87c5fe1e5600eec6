// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"fmt"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func TestPickDoesNotAllocate(t *testing.T) {
	for name, c := range pickers() {
		previous := []*balance.Host{c.Hosts()[0]}
		n := testing.AllocsPerRun(100, func() {
			p := balance.Pick{Previous: previous, Attempts: 3}
			if _, err := c.Pick(&p); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// pickers are clusters of every kind of choice.
func pickers() map[string]*balance.Cluster {
	uneven := func() []*resource.Endpoint {
		list := equals(50)
		for i, e := range list {
			e.Weight = uint32(i%4 + 1)
		}
		return list
	}
	return map[string]*balance.Cluster{
		"least_request":          cluster(resource.BalanceConfig{}, locality(0, 0, equals(50)...)),
		"least_request_weighted": cluster(resource.BalanceConfig{}, locality(0, 0, uneven()...)),
		"round_robin":            cluster(resource.BalanceConfig{Policy: resource.RoundRobin}, locality(0, 0, equals(50)...)),
		"round_robin_weighted":   cluster(resource.BalanceConfig{Policy: resource.RoundRobin}, locality(0, 0, uneven()...)),
		"random":                 cluster(resource.BalanceConfig{Policy: resource.Random}, locality(0, 0, equals(50)...)),
		"localities": cluster(resource.BalanceConfig{LocalityWeighted: true},
			locality(0, 1, equals(20)...), locality(0, 2, equals(50)[20:]...), locality(1, 1, endpoint(99))),
	}
}

func BenchmarkPick(b *testing.B) {
	for name, c := range pickers() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					h, err := c.Pick(nil)
					if err != nil {
						b.Fatal(err)
					}
					h.Acquire()
					h.Release()
				}
			})
		})
	}
}

func BenchmarkSetEndpoints(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			sets := []*resource.Endpoints{
				{Localities: []resource.Locality{locality(0, 0, equals(n)...)}},
				{Localities: []resource.Locality{locality(0, 0, equals(n+1)...)}},
			}
			c := cluster(resource.BalanceConfig{})
			for i := 0; b.Loop(); i++ {
				c.SetEndpoints(sets[i%2])
			}
		})
	}
}
