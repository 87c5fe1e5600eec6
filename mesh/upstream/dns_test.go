// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// zone is a resolver whose answers a test changes.
type zone struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	asked int
}

func (z *zone) lookup(context.Context, string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	return z.addrs, z.err
}

func (z *zone) set(err error, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.err, z.addrs = err, nil
	for _, a := range addrs {
		z.addrs = append(z.addrs, netip.MustParseAddr(a))
	}
}

func (z *zone) count() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func dnsCluster(d resource.Discovery) *resource.Cluster {
	return &resource.Cluster{
		Name: "outbound|443||db.example.com", Discovery: d, Balance: resource.BalanceConfig{Policy: resource.RoundRobin},
		DNSRefresh: 10 * time.Second,
		Endpoints: &resource.Endpoints{Localities: []resource.Locality{{Endpoints: []*resource.Endpoint{
			{Hostname: "db.example.com", Port: 443, Weight: 1},
		}}}},
	}
}

// addresses picks many times and returns the distinct results.
func addresses(t *testing.T, m *upstream.Manager, c *resource.Cluster) []string {
	t.Helper()
	var got []string
	for range 8 {
		target, err := m.Pick(t.Context(), c, nil, netip.AddrPort{}, nil)
		if err != nil {
			return []string{reason(err)}
		}
		if a := target.Address().String(); !slices.Contains(got, a) {
			got = append(got, a)
		}
		if target.Host.Endpoint.Hostname != "db.example.com" {
			t.Errorf("the name is lost: %+v", target.Host.Endpoint)
		}
	}
	slices.Sort(got)
	return got
}

func TestDNSClusters(t *testing.T) {
	for _, tt := range []struct {
		kind resource.Discovery
		want []string
	}{
		{resource.StrictDNS, []string{"192.0.2.1:443", "192.0.2.2:443"}},
		{resource.LogicalDNS, []string{"192.0.2.1:443"}},
	} {
		z := new(zone)
		z.set(nil, "192.0.2.1", "::ffff:192.0.2.2")
		m := start(t, upstream.Config{Lookup: z.lookup})
		c := dnsCluster(tt.kind)
		if got := addresses(t, m, c); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.kind, got, tt.want)
		}
		if n := z.count(); n != 1 {
			t.Errorf("%v: asked %d times", tt.kind, n)
		}
	}
}

func TestDNSRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := new(zone)
		z.set(errors.New("no such host"))
		m := start(t, upstream.Config{Lookup: z.lookup})
		c := dnsCluster(resource.StrictDNS)
		step := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d) //rule:allow the bubble's clock
			if got := addresses(t, m, c); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			synctest.Wait() // a look-up behind our back is over
		}
		step(0, "no_endpoint")
		if z.count() != 1 {
			t.Errorf("a failure was asked for %d times at once", z.count())
		}
		z.set(nil, "192.0.2.1")
		step(time.Second, "192.0.2.1:443")
		z.set(nil, "192.0.2.7")
		step(9*time.Second, "192.0.2.1:443")
		step(2*time.Second, "192.0.2.1:443") // due: this use asks
		step(0, "192.0.2.7:443")
		z.set(errors.New("server failure"))
		step(11*time.Second, "192.0.2.7:443")
		step(time.Minute, "192.0.2.7:443") // the last good answer stands
		asked := z.count()
		time.Sleep(time.Hour) //rule:allow the bubble's clock
		if z.count() != asked {
			t.Error("asked although nobody used it")
		}
		if s := m.Status(); s.Names != 1 || s.NameErrors < 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestDNSWithoutResolver(t *testing.T) {
	m := start(t, upstream.Config{})
	if _, err := m.Pick(t.Context(), dnsCluster(resource.StrictDNS), nil, netip.AddrPort{}, nil); reason(err) != "no_endpoint" {
		t.Errorf("%v", err)
	}
}
