// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// show writes a look-up as text.
func show(s *catalog.Snapshot, name string) string {
	h, ok := s.Lookup(name)
	if !ok {
		return "unknown"
	}
	return fmt.Sprint(h.Name, " ", h.V4, " ", h.V6)
}

// addr parses a list of addresses.
func addr(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestLookup(t *testing.T) {
	table := names(map[string]string{"echo": "10.96.0.1", "none": ""})
	for host, n := range map[string]*resource.Name{
		"dual.external.svc.cluster.local": {Registry: "Kubernetes", ShortName: "dual", Namespace: "external", Addresses: addr("10.96.0.2", "fd00::2")},
		"other.testing.svc.other.domain":  {Registry: "Kubernetes", ShortName: "other", Namespace: "testing", Addresses: addr("10.96.0.3")},
		"db.example.com":                  {Registry: "External", ShortName: "db", Namespace: "testing", Addresses: addr("240.240.0.1")},
		"*.wild.example.com":              {Registry: "External", Addresses: addr("240.240.0.2")},
		"echo.testing":                    {Registry: "External", Addresses: addr("240.240.0.3")}, // hides a short form
	} {
		n.Host = host
		table.Names[host] = n
	}
	c := catalog.New()
	c.SetNode("external", "external.svc.cluster.local")
	c.SetClusters(nil, nil)
	c.SetListeners(nil, nil)
	c.SetNames(table)
	s := published(t, c)
	for name, want := range map[string]string{
		"echo.testing.svc.cluster.local":  "echo.testing.svc.cluster.local [10.96.0.1] []",
		"echo.testing.svc":                "echo.testing.svc.cluster.local [10.96.0.1] []",
		"echo.testing":                    "echo.testing [240.240.0.3] []",
		"echo":                            "unknown", // of another namespace
		"dual":                            "dual.external.svc.cluster.local [10.96.0.2] [fd00::2]",
		"dual.external":                   "dual.external.svc.cluster.local [10.96.0.2] [fd00::2]",
		"other.testing":                   "unknown", // of another domain
		"other.testing.svc.other.domain":  "other.testing.svc.other.domain [10.96.0.3] []",
		"none.testing":                    "none.testing.svc.cluster.local [] []",
		"db.example.com":                  "db.example.com [240.240.0.1] []",
		"db.testing":                      "unknown", // only Kubernetes has short forms
		"a.wild.example.com":              "*.wild.example.com [240.240.0.2] []",
		"a.b.wild.example.com":            "*.wild.example.com [240.240.0.2] []",
		"wild.example.com":                "unknown",
		"":                                "unknown",
		"nothing.testing":                 "unknown",
		"dual.external.svc.cluster.local": "dual.external.svc.cluster.local [10.96.0.2] [fd00::2]",
	} {
		if got := show(s, name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	if !slices.Contains(s.Names(), "*.wild.example.com") || !slices.Contains(s.Names(), "dual") {
		t.Errorf("Names = %q", s.Names())
	}
}

// TestLearntNames: names that only routes and listeners know are found too,
// and change nothing of what the table says.
func TestLearntNames(t *testing.T) {
	c := catalog.New()
	db := "outbound|3306||db.example.com"
	c.SetClusters([]*resource.Cluster{eds(echo80, echoHost), eds(db, "db.example.com")}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints(echo80, "10.1.0.1:80"), endpoints(db)}, nil)
	c.SetListeners([]*resource.Listener{
		httpListener("0.0.0.0:80", "80"), tcpListener("240.240.0.9:3306", db), tcpListener("127.0.0.1:15002", db),
	}, nil)
	c.SetRoutes([]*resource.RouteConfiguration{{Name: "80", VirtualHosts: []*resource.VirtualHost{
		host(echo80, echoHost, "echo.testing", "10.96.0.1", "10.9.9.9"),
		host(echo80, "api.example.com", "api.example.com:80", "240.240.0.1", "[2001:2::1]"),
		host(catalog.PassthroughCluster, "*"),
		host(echo80, "no.address.com"),
	}}}, nil)
	c.SetNames(names(map[string]string{"echo": "10.96.0.1"}))
	s := published(t, c)
	for name, want := range map[string]string{
		"api.example.com": "api.example.com [240.240.0.1] [2001:2::1]",
		"db.example.com":  "db.example.com [240.240.0.9] []",
		"no.address.com":  "unknown", // the host's own DNS knows it
		echoHost:          echoHost + " [10.96.0.1] []",
		"echo.testing":    echoHost + " [10.96.0.1] []",
	} {
		if got := show(s, name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestOwnsAndEcho(t *testing.T) {
	c := catalog.New()
	db, headless := "outbound|3306||db.example.com", "outbound|9000||headless.testing.svc.cluster.local"
	dst := eds(headless, "headless.testing.svc.cluster.local")
	dst.Discovery = resource.OriginalDst
	c.SetClusters([]*resource.Cluster{
		eds(echo80, echoHost), eds(db, "db.example.com"), dst, {Name: catalog.PassthroughCluster, Discovery: resource.OriginalDst},
	}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints(echo80, "10.1.0.1:80"), endpoints(db)}, nil)
	ranged := httpListener("0.0.0.0:8080", "80")
	ranged.Chains[0].Match.Prefixes = []netip.Prefix{netip.MustParsePrefix("203.0.113.7/24")}
	virtual := tcpListener("0.0.0.0:15001", catalog.PassthroughCluster)
	virtual.Virtual = true
	c.SetListeners([]*resource.Listener{
		httpListener("0.0.0.0:80", "80"), ranged, virtual,
		tcpListener("240.240.0.9:3306", db), tcpListener("10.1.0.7:9000", headless), tcpListener("127.0.0.1:15002", db),
	}, nil)
	c.SetRoutes([]*resource.RouteConfiguration{{Name: "80", VirtualHosts: []*resource.VirtualHost{
		host(echo80, echoHost, "10.96.0.1"), host(catalog.PassthroughCluster, "*"),
	}}}, nil)
	c.SetNames(names(map[string]string{"echo": "10.96.0.1", "silent": "10.96.0.5"}))
	c.SetAddresses([]*resource.Workload{
		{UID: "w1", Addresses: addr("10.244.0.5")},
		{UID: "w2", Addresses: addr("10.244.0.6"), HBONE: true, Unhealthy: true},
		{UID: "w3", Network: "other", Addresses: addr("10.244.0.5"), HBONE: true},
	}, []*resource.WDSService{
		{Namespace: "testing", Hostname: echoHost, Addresses: addr("10.96.7.7", "fd00::7")},
		{Namespace: "x", Hostname: "none.x", Addresses: addr("10.96.7.8")},
	}, nil)
	s := published(t, c)
	type answer struct{ Owns, Echo, HBONE bool }
	ask := func(a string) answer {
		ip := netip.MustParseAddr(a)
		return answer{s.Owns(ip), s.Echo(ip), s.HBONEOnly(ip)}
	}
	for a, want := range map[string]answer{
		"10.96.0.1":        {true, true, false},  // by name and by route
		"::ffff:10.96.0.1": {true, true, false},  // the same
		"240.240.0.9":      {true, false, false}, // no endpoint
		"10.1.0.7":         {true, true, false},  // a headless pod
		"10.96.0.5":        {true, false, false}, // a name without clusters
		"203.0.113.200":    {true, false, false}, // in a range
		"203.0.114.1":      {false, false, false},
		"127.0.0.1":        {false, false, false},
		"10.1.0.1":         {false, false, false}, // an endpoint is nothing that is dialled
		"10.244.0.5":       {true, true, true},    // HBONE in one network is enough
		"10.244.0.6":       {true, false, true},
		"10.96.7.7":        {true, true, false},
		"fd00::7":          {true, true, false},
		"10.96.7.8":        {true, false, false},
		"8.8.8.8":          {false, false, false},
	} {
		if diff := cmp.Diff(want, ask(a)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", a, diff)
		}
	}

	// Endpoints tell the truth without a Publish.
	c.SetEndpoints([]*resource.Endpoints{endpoints(echo80), endpoints(db, "10.1.0.2:3306")}, nil)
	for a, want := range map[string]bool{"10.96.0.1": false, "10.96.7.7": false, "240.240.0.9": true} {
		if got := s.Echo(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: Echo = %v after the change, want %v", a, got, want)
		}
	}

	c.SetAddresses(nil, nil, []string{"w1", "w2", "w3", "testing/" + echoHost})
	s = published(t, c)
	for _, a := range []string{"10.244.0.5", "10.244.0.6", "10.96.7.7"} {
		if got := ask(a); got != (answer{}) {
			t.Errorf("%s: %+v after removal", a, got)
		}
	}
}

func TestServices(t *testing.T) {
	c := recorded(t)
	e := endpoints("outbound|9000||"+echoHost, "10.1.0.1:9000", "10.1.0.2:9000", "10.1.0.3:9000")
	e.Localities[0].Endpoints[1].Health = resource.Unhealthy
	e.Localities[0].Endpoints[2].Match = nil
	plain := endpoints("outbound|15012||istio-eastwestgateway.istio-system.svc.cluster.local", "10.1.0.4:1")
	plain.Localities[0].Endpoints[0].Match = nil
	c.SetEndpoints([]*resource.Endpoints{e, plain}, nil)
	subset := eds("outbound|80|v1|"+echoHost, echoHost)
	c.SetClusters([]*resource.Cluster{subset}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints(subset.Name)}, nil)
	want := []catalog.Service{
		{
			Name: echoHost, Namespace: "testing", Addresses: addr("10.96.158.50"),
			Ports: []catalog.Port{
				{Number: 80, Protocol: "http", Cluster: echo80, MTLS: "mTLS", Healthy: 1, Total: 1},
				{Number: 9000, Protocol: "tcp", Cluster: "outbound|9000||" + echoHost, MTLS: "mixed", Healthy: 2, Total: 3},
			},
		},
		{
			Name: "istio-eastwestgateway.istio-system.svc.cluster.local", Namespace: "istio-system", Addresses: addr("10.96.13.168"),
			Ports: []catalog.Port{
				{Number: 15012, Protocol: "tcp", Cluster: plain.Name, MTLS: "plaintext", Healthy: 1, Total: 1},
				{Number: 15443, Protocol: "tcp", Cluster: "outbound|15443||istio-eastwestgateway.istio-system.svc.cluster.local", MTLS: "-"},
			},
		},
		{
			Name: "kubernetes.default.svc.cluster.local", Namespace: "default", Addresses: addr("10.96.0.1"),
			Ports: []catalog.Port{{Number: 443, Protocol: "tcp", Cluster: "outbound|443||kubernetes.default.svc.cluster.local", MTLS: "-"}},
		},
	}
	got := published(t, c).Services()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestIgnored: what a real istiod's default configuration asks for and does
// not get, by name.
func TestIgnored(t *testing.T) {
	got := published(t, recorded(t)).Ignored()
	want := map[string]int{
		"access log envoy.access_loggers.file":      6,
		"cluster.original_dst_lb_config":            1,
		"cluster.upstream_bind_config":              1,
		"hcm.tracing":                               1,
		"http filter envoy.filters.http.grpc_stats": 1,
		"http filter istio.metadata_exchange":       1,
		"upstream filter istio.metadata_exchange":   6,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRecorded asks of a real istiod's mesh what a curl to echo.testing asks.
func TestRecorded(t *testing.T) {
	s := published(t, recorded(t))
	h, ok := s.Lookup("echo.testing")
	if !ok || len(h.V4) != 1 {
		t.Fatalf("echo.testing: %v, %v", h, ok)
	}
	dst := netip.AddrPortFrom(h.V4[0], 80)
	l := s.Listener(dst)
	if _, http := l.Inspect(); !http {
		t.Error("the listener does not look for HTTP")
	}
	chain := l.Match(dst, &catalog.Sniff{Protocols: []string{"http/1.1"}})
	if chain == nil || chain.HTTP == nil {
		t.Fatalf("chain %v, want HTTP", chain)
	}
	for _, name := range []string{"echo.testing", "10.96.158.50", "10.96.158.50:80", "my-alias"} {
		_, r := s.Routes(chain.HTTP).Match(&catalog.Request{Method: "GET", Host: name, Path: "/", Dst: dst})
		if r == nil || catalog.Choose(r.Action.Clusters, 0).Name != echo80 {
			t.Fatalf("%s: route %v, want one to %s", name, r, echo80)
		}
	}
	cell := s.Cluster(echo80)
	host, err := cell.LB.Pick(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := cell.Config.TransportFor(host.Endpoint)
	if host.Endpoint.Address.String() != "172.30.0.10:15443" || tr.Kind != resource.IstioMTLS ||
		tr.SNI != "outbound_.80_._.echo.testing.svc.cluster.local" || !tr.SANs[0].Matches("spiffe://cluster.local/ns/testing/sa/default") {
		t.Errorf("endpoint %v by %+v", host.Endpoint.Address, tr)
	}

	tcp := netip.AddrPortFrom(h.V4[0], 9000)
	if c := s.Listener(tcp).Match(tcp, nil); c == nil || c.TCP == nil || c.TCP.Clusters[0].Name != "outbound|9000||"+echoHost {
		t.Errorf("port 9000: chain %v", c)
	}
	outside := netip.MustParseAddrPort("93.184.216.34:443")
	if c := s.Listener(outside).Match(outside, nil); c == nil || c.TCP == nil || c.TCP.Clusters[0].Name != catalog.PassthroughCluster {
		t.Errorf("outside: chain %v", c)
	}
	// Port 80 of a host that is not of the mesh leaves by Host alone.
	outside = netip.MustParseAddrPort("93.184.216.34:80")
	chain = s.Listener(outside).Match(outside, &catalog.Sniff{Protocols: []string{"http/1.1"}})
	if vh, _ := s.Routes(chain.HTTP).Match(&catalog.Request{Host: "example.com", Path: "/", Dst: outside}); vh == nil || vh.Name != "allow_any" {
		t.Errorf("outside: host %v, want allow_any", vh)
	}
}
