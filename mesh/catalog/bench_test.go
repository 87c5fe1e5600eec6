// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// vip is the virtual address of the i-th service of a big mesh.
func vip(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

// big returns a mesh of n services as istiod describes them: each has an HTTP
// port 80, all behind one listener and one route table, and a TCP port 9000
// with a listener of its own; each cluster has ten endpoints.
func big(t testing.TB, n int) *catalog.Catalog {
	t.Helper()
	c := catalog.New()
	c.SetNode("external", "external.svc.cluster.local")
	nt := &resource.NameTable{Names: make(map[string]*resource.Name, n)}
	rc := &resource.RouteConfiguration{Name: "80", IgnorePort: true}
	var (
		clusters  []*resource.Cluster
		sets      []*resource.Endpoints
		listeners = []*resource.Listener{httpListener("0.0.0.0:80", "80")}
	)
	for i := range n {
		short := fmt.Sprintf("svc-%d", i)
		qualified := short + ".testing"
		fqdn := qualified + ".svc.cluster.local"
		nt.Names[fqdn] = &resource.Name{Host: fqdn, Registry: "Kubernetes", ShortName: short, Namespace: "testing", Addresses: []netip.Addr{vip(i)}}
		for _, port := range []int{80, 9000} {
			name := fmt.Sprintf("outbound|%d||%s", port, fqdn)
			clusters = append(clusters, eds(name, fqdn))
			sets = append(sets, someEndpoints(name, i))
		}
		rc.VirtualHosts = append(rc.VirtualHosts, host("outbound|80||"+fqdn, fqdn, fqdn+".", qualified, qualified+".svc", vip(i).String()))
		listeners = append(listeners, tcpListener(netip.AddrPortFrom(vip(i), 9000).String(), "outbound|9000||"+fqdn))
	}
	rc.VirtualHosts = append(rc.VirtualHosts, host(catalog.PassthroughCluster, "*"))
	c.SetClusters(clusters, nil)
	c.SetEndpoints(sets, nil)
	c.SetListeners(listeners, nil)
	c.SetRoutes([]*resource.RouteConfiguration{rc}, nil)
	c.SetNames(nt)
	return c
}

func someEndpoints(name string, salt int) *resource.Endpoints {
	e := &resource.Endpoints{Name: name, Localities: make([]resource.Locality, 1)}
	for k := range 10 {
		e.Localities[0].Endpoints = append(e.Localities[0].Endpoints, &resource.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(salt >> 8), byte(salt), byte(k + 1)}), 8080), Weight: 1,
		})
	}
	return e
}

// walk goes the way of a connection of each kind, and of a DNS question.
func walk(t testing.TB, s *catalog.Snapshot, i int, name string, sniff *catalog.Sniff) {
	a := vip(i)
	h, ok := s.Lookup(name)
	if !ok || h.V4[0] != a || !s.Owns(a) || s.HBONEOnly(a) {
		t.Fatalf("%s is not known", name)
	}
	tcp := netip.AddrPortFrom(a, 9000)
	chain := s.Listener(tcp).Match(tcp, nil)
	if w := catalog.Choose(chain.TCP.Clusters, 1); s.Cluster(w.Name) == nil {
		t.Fatal("no cluster")
	}
	web := netip.AddrPortFrom(a, 80)
	chain = s.Listener(web).Match(web, sniff)
	r := catalog.Request{Method: "GET", Host: name, Path: "/a?b", Dst: web}
	_, route := s.Routes(chain.HTTP).Match(&r)
	w := catalog.Choose(route.Action.Clusters, 1)
	if _, err := s.Cluster(w.Name).LB.Pick(nil); err != nil {
		t.Fatal(err)
	}
}

var sniffed = catalog.Sniff{Transport: "raw_buffer", Protocols: []string{"http/1.1"}}

func TestLookupsDoNotAllocate(t *testing.T) {
	s := published(t, big(t, 100))
	if n := testing.AllocsPerRun(100, func() { walk(t, s, 42, "svc-42.testing", &sniffed) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
	l := &resource.Listener{
		Name: "l", Outbound: true, TLSInspector: true, Addresses: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:443")},
		Chains: []*resource.FilterChain{
			tcpChain("a", resource.ChainMatch{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, ServerNames: []string{"*.example.com"}}),
			tcpChain("b", resource.ChainMatch{TransportProtocol: "tls"}),
		},
	}
	s = withListeners(t, l)
	dst, sniff := netip.MustParseAddrPort("10.0.0.1:443"), &catalog.Sniff{Transport: "tls", ServerName: "a.b.example.com"}
	if n := testing.AllocsPerRun(100, func() {
		if s.Listener(dst).Match(dst, sniff) == nil {
			t.Fatal("no chain")
		}
	}); n != 0 {
		t.Errorf("match: %v allocations, want none", n)
	}
}

func BenchmarkListener(b *testing.B) {
	s := published(b, big(b, 10_000))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		dst := netip.AddrPortFrom(vip(i%10_000), 9000)
		if s.Listener(dst).Match(dst, nil) == nil {
			b.Fatal("no chain")
		}
	}
}

// BenchmarkRoute is from an HTTP request to its cluster, among 10,000 hosts.
func BenchmarkRoute(b *testing.B) {
	s := published(b, big(b, 10_000))
	hosts := make([]string, 10_000)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("svc-%d.testing:80", i)
	}
	m := s.Listener(netip.AddrPortFrom(vip(0), 80)).Config.Chains[0].HTTP
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, r := s.Routes(m).Match(&catalog.Request{Host: hosts[i%10_000], Path: "/api?x"})
		if s.Cluster(catalog.Choose(r.Action.Clusters, 1).Name) == nil {
			b.Fatal("no cluster")
		}
	}
}

func BenchmarkDNSLookup(b *testing.B) {
	s := published(b, big(b, 10_000))
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("svc-%d.testing", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok := s.Lookup(names[i%10_000]); !ok {
			b.Fatal("unknown")
		}
	}
}

// BenchmarkEDSChange: the cost of a change of one cluster's endpoints must not
// depend on how many others there are.
func BenchmarkEDSChange(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			c := big(b, n)
			published(b, c)
			name := "outbound|80||svc-7.testing.svc.cluster.local"
			sets := [][]*resource.Endpoints{{someEndpoints(name, 1)}, {someEndpoints(name, 2)}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c.SetEndpoints(sets[i%2], nil)
			}
		})
	}
}

// BenchmarkPublish is a new Snapshot after a change of one cluster.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			c := big(b, n)
			published(b, c)
			host := "svc-7.testing.svc.cluster.local"
			b.ReportAllocs()
			for b.Loop() {
				c.SetClusters([]*resource.Cluster{eds("outbound|80||"+host, host)}, nil)
				c.Publish()
			}
		})
	}
}

// BenchmarkMemory reports what a mesh of 10,000 services, 20,000 clusters and
// 200,000 endpoints takes: all of it, and the part that is not the resources.
func BenchmarkMemory(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	for b.Loop() {
		before := heap()
		c := big(b, 10_000)
		loaded := heap()
		s := published(b, c)
		b.ReportMetric(heap()-before, "MB-in-all")
		b.ReportMetric(heap()-loaded, "MB-of-the-Snapshot")
		runtime.KeepAlive(s)
		runtime.KeepAlive(c)
	}
}
