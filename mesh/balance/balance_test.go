// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// endpoint returns the n-th endpoint of a test.
func endpoint(n int, set ...func(*resource.Endpoint)) *resource.Endpoint {
	addr := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
	e := &resource.Endpoint{Address: netip.AddrPortFrom(addr, 8080), Weight: 1}
	for _, f := range set {
		f(e)
	}
	return e
}

func weight(w uint32) func(*resource.Endpoint) { return func(e *resource.Endpoint) { e.Weight = w } }

func health(h resource.Health) func(*resource.Endpoint) {
	return func(e *resource.Endpoint) { e.Health = h }
}

// locality groups endpoints.
func locality(priority, weight uint32, eps ...*resource.Endpoint) resource.Locality {
	return resource.Locality{Priority: priority, Weight: weight, Endpoints: eps}
}

func cluster(cfg resource.BalanceConfig, ls ...resource.Locality) *balance.Cluster {
	return balance.New(&resource.Cluster{Balance: cfg, Endpoints: &resource.Endpoints{Localities: ls}})
}

// equals returns n endpoints that differ in nothing but address.
func equals(n int) []*resource.Endpoint {
	list := make([]*resource.Endpoint, n)
	for i := range list {
		list[i] = endpoint(i)
	}
	return list
}

// tally picks n times, from a fixed seed, and counts by endpoint.
func tally(t *testing.T, c *balance.Cluster, n int) map[*resource.Endpoint]int {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	count := make(map[*resource.Endpoint]int)
	for range n {
		h, err := c.Pick(&balance.Pick{Rand: random.Uint64() | 1})
		if err != nil {
			t.Fatal(err)
		}
		count[h.Endpoint]++
	}
	return count
}

// wantShares checks that counts are what shares of n make, within five
// standard deviations of a binomial.
func wantShares(t *testing.T, got map[*resource.Endpoint]int, n int, want map[*resource.Endpoint]float64) {
	t.Helper()
	for e, share := range want {
		mean := share * float64(n)
		slack := 5 * math.Sqrt(float64(n)*share*(1-share))
		if d := math.Abs(float64(got[e]) - mean); d > slack+1 {
			t.Errorf("%s: %d of %d picks, want %.0f ± %.0f", e.Key(), got[e], n, mean, slack)
		}
		delete(got, e)
	}
	for e, c := range got {
		t.Errorf("%s: %d picks, want none", e.Key(), c)
	}
}

func TestPoliciesSpreadEvenly(t *testing.T) {
	// 300: shares of a percent must not be rounded away (nasp gave every
	// endpoint 0.00 of the load from 200 on).
	for _, policy := range []resource.Policy{
		resource.LeastRequest, resource.RoundRobin, resource.Random, resource.RingHash, resource.Maglev,
	} {
		for _, n := range []int{1, 2, 3, 200, 300} {
			t.Run(fmt.Sprintf("%v/%d", policy, n), func(t *testing.T) {
				eps := equals(n)
				c := cluster(resource.BalanceConfig{Policy: policy}, locality(0, 0, eps...))
				want := make(map[*resource.Endpoint]float64)
				for _, e := range eps {
					want[e] = 1 / float64(n)
				}
				wantShares(t, tally(t, c, 30_000), 30_000, want)
			})
		}
	}
}

func TestRoundRobinRotates(t *testing.T) {
	eps := equals(5)
	c := cluster(resource.BalanceConfig{Policy: resource.RoundRobin}, locality(0, 0, eps...))
	first := pick(t, c)
	at := 0
	for i, e := range eps {
		if e == first.Endpoint {
			at = i
		}
	}
	for i := 1; i < 20; i++ {
		if i == 10 {
			c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{locality(0, 0, eps...)}})
		}
		if got, want := pick(t, c).Endpoint, eps[(at+i)%5]; got != want {
			t.Fatalf("pick %d: %s, want %s", i, got.Key(), want.Key())
		}
	}
}

func TestRoundRobinByWeight(t *testing.T) {
	a, b, d := endpoint(1, weight(1)), endpoint(2, weight(3)), endpoint(3, weight(6))
	c := cluster(resource.BalanceConfig{Policy: resource.RoundRobin}, locality(0, 0, a, b, d))
	for round := range 20 {
		got := tally(t, c, 10)
		// A schedule, not a lottery: each round of ten keeps the weights to
		// within one.
		for e, want := range map[*resource.Endpoint]int{a: 1, b: 3, d: 6} {
			if got[e] < want-1 || got[e] > want+1 {
				t.Fatalf("round %d: %s picked %d times of 10, want %d", round, e.Key(), got[e], want)
			}
		}
	}
	wantShares(t, tally(t, c, 10_000), 10_000, map[*resource.Endpoint]float64{a: .1, b: .3, d: .6})
}

// TestLeastRequestAvoidsLoad: of two choices the less loaded wins, so a host
// that is busier than all others is only picked when it is drawn twice.
func TestLeastRequestAvoidsLoad(t *testing.T) {
	eps := equals(4)
	c := cluster(resource.BalanceConfig{}, locality(0, 0, eps...))
	for _, h := range c.Hosts() {
		if h.Endpoint == eps[0] {
			for range 10 {
				h.Acquire()
			}
		}
	}
	wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{
		eps[0]: 1. / 16, eps[1]: 5. / 16, eps[2]: 5. / 16, eps[3]: 5. / 16,
	})
}

// TestLeastRequestKeepsEven: requests that stay open end up spread far more
// evenly than random choice would spread them.
func TestLeastRequestKeepsEven(t *testing.T) {
	c := cluster(resource.BalanceConfig{}, locality(0, 0, equals(10)...))
	random := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		h, err := c.Pick(&balance.Pick{Rand: random.Uint64() | 1})
		if err != nil {
			t.Fatal(err)
		}
		h.Acquire()
	}
	for _, h := range c.Hosts() {
		if n := h.Active(); n < 96 || n > 104 {
			t.Errorf("%s has %d of 1000 requests, want about 100", h.Endpoint.Key(), n)
		}
	}
}

func TestLeastRequestChoices(t *testing.T) {
	eps := equals(4)
	c := cluster(resource.BalanceConfig{ChoiceCount: 64}, locality(0, 0, eps...))
	for _, h := range c.Hosts()[1:] {
		h.Acquire()
	}
	// Of 64 draws the idle one is missed once in 10^8; more choices than
	// hosts are no error.
	wantShares(t, tally(t, c, 1000), 1000, map[*resource.Endpoint]float64{eps[0]: 1})
}

// TestLeastRequestByWeight: with weights the choice is a schedule in which a
// host counts for weight / (active+1)^bias.
func TestLeastRequestByWeight(t *testing.T) {
	tests := []struct {
		name   string
		cfg    resource.BalanceConfig
		active int // of the second host
		want   [2]float64
	}{
		{"idle", resource.BalanceConfig{}, 0, [2]float64{.25, .75}},
		{"loaded", resource.BalanceConfig{}, 2, [2]float64{.5, .5}},
		{"loaded, strong bias", resource.BalanceConfig{ActiveBias: 2}, 2, [2]float64{.75, .25}},
		{"loaded, no bias", resource.BalanceConfig{IgnoreLoad: true}, 2, [2]float64{.25, .75}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := endpoint(1, weight(1)), endpoint(2, weight(3))
			c := cluster(tt.cfg, locality(0, 0, a, b))
			for range tt.active {
				c.Hosts()[1].Acquire()
			}
			wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: tt.want[0], b: tt.want[1]})
		})
	}
}

func TestPrioritiesSpillOver(t *testing.T) {
	bad := health(resource.Unhealthy)
	a, b := endpoint(1), endpoint(2)
	c := cluster(resource.BalanceConfig{},
		locality(1, 0, b),
		locality(0, 0, a, endpoint(3, bad)))
	wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: .7, b: .3})

	c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{
		locality(0, 0, endpoint(1, bad)), locality(1, 0, b),
	}})
	wantShares(t, tally(t, c, 1000), 1000, map[*resource.Endpoint]float64{b: 1})
}

func TestOverprovisioningOfEndpointsWins(t *testing.T) {
	bad := health(resource.Unhealthy)
	a, b := endpoint(1), endpoint(2)
	c := balance.New(&resource.Cluster{
		Balance: resource.BalanceConfig{Overprovisioning: 140},
		Endpoints: &resource.Endpoints{Overprovisioning: 100, Localities: []resource.Locality{
			locality(0, 0, a, endpoint(3, bad)), locality(1, 0, b),
		}},
	})
	wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: .5, b: .5})
}

func TestHealth(t *testing.T) {
	bad, draining, degraded := health(resource.Unhealthy), health(resource.Draining), health(resource.Degraded)
	good := endpoint(1)
	tests := []struct {
		name  string
		panic float64
		eps   []*resource.Endpoint
		want  []int // indices of those that may be picked
	}{
		{"no endpoint", 0, nil, nil},
		{"all unhealthy", 0, []*resource.Endpoint{endpoint(1, bad), endpoint(2, draining)}, nil},
		{"all unhealthy, panic", 50, []*resource.Endpoint{endpoint(1, bad), endpoint(2, draining)}, []int{0, 1}},
		{"one healthy", 0, []*resource.Endpoint{endpoint(2, bad), good, endpoint(3, draining)}, []int{1}},
		{"one healthy, panic", 50, []*resource.Endpoint{endpoint(2, bad), good, endpoint(3, draining)}, []int{0, 1, 2}},
		{"degraded only where healthy ones do not suffice", 0, []*resource.Endpoint{good, endpoint(2), endpoint(3), endpoint(4, degraded)}, []int{0, 1, 2}},
		{"degraded alone", 0, []*resource.Endpoint{endpoint(2, bad), endpoint(3, degraded)}, []int{1}},
		{"one healthy of a thousand", 0, append(allBad(1000), good), []int{1000}},
	}
	for _, tt := range tests {
		for _, policy := range []resource.Policy{resource.LeastRequest, resource.RoundRobin, resource.Random} {
			t.Run(fmt.Sprint(tt.name, "/", policy), func(t *testing.T) {
				c := cluster(resource.BalanceConfig{Policy: policy, PanicThreshold: tt.panic}, locality(0, 0, tt.eps...))
				if len(tt.want) == 0 {
					if h, err := c.Pick(nil); !errors.Is(err, balance.ErrNoEndpoint) {
						t.Fatalf("Pick = %v, %v; want ErrNoEndpoint", h, err)
					}
					if c.HasHealthy() {
						t.Error("HasHealthy = true")
					}
					return
				}
				got := tally(t, c, 2000)
				for _, i := range tt.want {
					if got[tt.eps[i]] == 0 {
						t.Errorf("endpoint %d is never picked", i)
					}
					delete(got, tt.eps[i])
				}
				for e := range got {
					t.Errorf("%s (%v) is picked", e.Key(), e.Health)
				}
			})
		}
	}
}

func allBad(n int) []*resource.Endpoint {
	list := equals(n + 10)[10:]
	for _, e := range list {
		e.Health = resource.Unhealthy
	}
	return list
}

func TestLocalityWeights(t *testing.T) {
	bad := health(resource.Unhealthy)
	cfg := resource.BalanceConfig{LocalityWeighted: true}
	a, b, d := endpoint(1), endpoint(2), endpoint(3)
	t.Run("by weight, not by number", func(t *testing.T) {
		c := cluster(cfg, locality(0, 1, a), locality(0, 3, b, d))
		wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: .25, b: .375, d: .375})
	})
	t.Run("less where hosts are ill", func(t *testing.T) {
		// Half healthy: 1.4 * 0.5 of the weight is left.
		c := cluster(cfg, locality(0, 1, a, endpoint(4, bad)), locality(0, 1, b))
		wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: .7 / 1.7, b: 1 / 1.7})
	})
	t.Run("none without a weight", func(t *testing.T) {
		c := cluster(cfg, locality(0, 0, a), locality(0, 1, b))
		wantShares(t, tally(t, c, 1000), 1000, map[*resource.Endpoint]float64{b: 1})
	})
	t.Run("all alike without any weight", func(t *testing.T) {
		c := cluster(cfg, locality(0, 0, a), locality(0, 0, b, d))
		wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: 1. / 3, b: 1. / 3, d: 1. / 3})
	})
	t.Run("not asked for", func(t *testing.T) {
		c := cluster(resource.BalanceConfig{}, locality(0, 1, a), locality(0, 30, b))
		wantShares(t, tally(t, c, 20_000), 20_000, map[*resource.Endpoint]float64{a: .5, b: .5})
	})
}

func TestOriginalDstIsAlwaysThere(t *testing.T) {
	c := balance.New(&resource.Cluster{Discovery: resource.OriginalDst})
	if !c.HasHealthy() {
		t.Error("HasHealthy = false")
	}
}

// TestConcurrent is for the race detector: choices, updates and load at once.
func TestConcurrent(t *testing.T) {
	for _, policy := range []resource.Policy{resource.LeastRequest, resource.RoundRobin} {
		c := cluster(resource.BalanceConfig{Policy: policy}, locality(0, 0, endpoint(1, weight(2)), endpoint(2)))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 2000 {
					h, err := c.Pick(&balance.Pick{})
					if err != nil {
						t.Error(err)
						return
					}
					h.Acquire()
					h.Release()
				}
			})
		}
		wg.Go(func() {
			for i := range 200 {
				w := uint32(i%3 + 1)
				c.SetEndpoints(&resource.Endpoints{Localities: []resource.Locality{
					locality(0, 0, endpoint(1, weight(w)), endpoint(2), endpoint(3+i)),
				}})
			}
		})
		wg.Wait()
		for _, h := range c.Hosts() {
			if h.Active() != 0 {
				t.Errorf("%s: %d active at the end", h.Endpoint.Key(), h.Active())
			}
		}
	}
}

func pick(t *testing.T, c *balance.Cluster) *balance.Host { return pickWith(t, c, &balance.Pick{}) }

func pickWith(t *testing.T, c *balance.Cluster, p *balance.Pick) *balance.Host {
	t.Helper()
	h, err := c.Pick(p)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
