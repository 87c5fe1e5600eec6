// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func TestPreviousHostsAvoided(t *testing.T) {
	eps := equals(3)
	c := cluster(resource.BalanceConfig{Policy: resource.RoundRobin}, locality(0, 0, eps...))
	first := pick(t, c)
	second := pickWith(t, c, &balance.Pick{Previous: []*balance.Host{first}, Attempts: 5})
	if second.Same(first) {
		t.Error("the host that failed was picked again")
	}
	third := pickWith(t, c, &balance.Pick{Previous: []*balance.Host{first, second}, Attempts: 5})
	if third.Same(first) || third.Same(second) {
		t.Error("a host that failed was picked again")
	}
	// With none left the last choice stands, as for Envoy.
	if h := pickWith(t, c, &balance.Pick{Previous: []*balance.Host{first, second, third}, Attempts: 5}); h == nil {
		t.Error("no host")
	}
	// Without attempts Previous has no effect.
	c = cluster(resource.BalanceConfig{}, locality(0, 0, eps[0]))
	only := pick(t, c)
	if h := pickWith(t, c, &balance.Pick{Previous: []*balance.Host{only}}); !h.Same(only) {
		t.Error("another host of one")
	}
}

func TestPreviousHostsAcrossUpdates(t *testing.T) {
	c := cluster(resource.BalanceConfig{Policy: resource.RoundRobin}, locality(0, 0, equals(2)...))
	tried := pick(t, c)
	changed := equals(2)
	for _, e := range changed {
		e.Workload = "changed"
	}
	c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{locality(0, 0, changed...)}})
	for range 10 {
		if h := pickWith(t, c, &balance.Pick{Previous: []*balance.Host{tried}, Attempts: 1}); h.Same(tried) {
			t.Fatal("the tried host was picked in its new shape")
		}
	}
}

func TestHostsOutliveUpdates(t *testing.T) {
	c := cluster(resource.BalanceConfig{}, locality(0, 0, endpoint(1), endpoint(2)))
	h := c.Hosts()[0]
	h.Acquire()

	// Same endpoint: the very same host. Changed: another one, same load.
	// Moved to another priority: likewise.
	c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{locality(0, 0, endpoint(3), endpoint(1))}})
	if got := c.Hosts()[1]; got != h {
		t.Error("an unchanged endpoint got a new host")
	}
	c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{
		locality(0, 0, endpoint(3)), locality(1, 0, endpoint(1, weight(7))),
	}})
	got := c.Hosts()[1]
	if got == h || !got.Same(h) || got.Endpoint.Weight != 7 || got.Active() != 1 {
		t.Errorf("the changed endpoint has weight %d and %d active, want 7 and 1", got.Endpoint.Weight, got.Active())
	}
	h.Release()
	if got.Active() != 0 {
		t.Error("Release through the old host is not seen through the new one")
	}
	// Gone and come back: a new life.
	h.Acquire()
	c.SetEndpoints(nil)
	if c.Endpoints() != nil || c.HasHealthy() {
		t.Error("endpoints are left")
	}
	c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{locality(0, 0, endpoint(1))}})
	if c.Hosts()[0].Active() != 0 {
		t.Error("load of a host that was gone")
	}
}

func TestDuplicatesCountOnce(t *testing.T) {
	a, b := endpoint(1), endpoint(2)
	c := cluster(resource.BalanceConfig{Policy: resource.RoundRobin},
		locality(0, 0, a, endpoint(1, weight(9))), locality(0, 0, b, endpoint(1)))
	if n := len(c.Hosts()); n != 2 {
		t.Fatalf("%d hosts, want 2", n)
	}
	wantShares(t, tally(t, c, 1000), 1000, map[*resource.Endpoint]float64{a: .5, b: .5})
}

func TestConfigureKeepsEndpoints(t *testing.T) {
	a, b := endpoint(1, weight(1)), endpoint(2, weight(9))
	c := cluster(resource.BalanceConfig{Policy: resource.Random}, locality(0, 0, a, b))
	wantShares(t, tally(t, c, 10_000), 10_000, map[*resource.Endpoint]float64{a: .5, b: .5})
	c.Configure(&resource.Cluster{Balance: resource.BalanceConfig{Policy: resource.RoundRobin}})
	wantShares(t, tally(t, c, 10_000), 10_000, map[*resource.Endpoint]float64{a: .1, b: .9})
}
