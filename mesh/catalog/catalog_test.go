// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const (
	echoHost = "echo.testing.svc.cluster.local"
	echo80   = "outbound|80||" + echoHost
)

// eds returns an EDS cluster of a service.
func eds(name, host string) *resource.Cluster {
	return &resource.Cluster{
		Name: name, Discovery: resource.EDS, EDSName: name,
		Transports: []resource.TransportMatch{{
			Match:     map[string]string{"tlsMode": "istio"},
			Transport: resource.Transport{Kind: resource.IstioMTLS},
		}},
		Istio: resource.IstioMeta{Services: []resource.ServiceRef{{Host: host, Name: "echo", Namespace: "testing"}}},
	}
}

// endpoints returns an assignment of healthy endpoints that take mTLS.
func endpoints(name string, addrs ...string) *resource.Endpoints {
	e := &resource.Endpoints{Name: name, Localities: make([]resource.Locality, 1)}
	for _, a := range addrs {
		e.Localities[0].Endpoints = append(e.Localities[0].Endpoints, &resource.Endpoint{
			Address: netip.MustParseAddrPort(a), Weight: 1, Match: map[string]string{"tlsMode": "istio"},
		})
	}
	return e
}

// tcpListener leads from an address to a cluster.
func tcpListener(addr, cluster string) *resource.Listener {
	return &resource.Listener{
		Name: addr, Outbound: true, Addresses: []netip.AddrPort{netip.MustParseAddrPort(addr)},
		Chains: []*resource.FilterChain{tcpChain(cluster, resource.ChainMatch{})},
	}
}

func tcpChain(cluster string, m resource.ChainMatch) *resource.FilterChain {
	return &resource.FilterChain{
		Name: cluster, Match: m,
		TCP: &resource.TCPProxy{Clusters: []resource.WeightedCluster{{Name: cluster, Weight: 1}}},
	}
}

// httpListener leads from an address to routes.
func httpListener(addr, routes string) *resource.Listener {
	return &resource.Listener{
		Name: addr, Outbound: true, Addresses: []netip.AddrPort{netip.MustParseAddrPort(addr)},
		Chains: []*resource.FilterChain{{HTTP: &resource.HTTPManager{RouteName: routes}}},
	}
}

// host returns a virtual host with one route for everything.
func host(cluster string, domains ...string) *resource.VirtualHost {
	return &resource.VirtualHost{
		Name: cluster, Domains: domains,
		Routes: []*resource.Route{{
			Name: "default", Match: resource.RouteMatch{Prefix: "/"},
			Action: &resource.RouteAction{Clusters: []resource.WeightedCluster{{Name: cluster, Weight: 1}}},
		}},
	}
}

// names returns a table of Kubernetes services of namespace testing.
func names(addrs map[string]string) *resource.NameTable {
	t := &resource.NameTable{Names: make(map[string]*resource.Name)}
	for short, a := range addrs {
		h := short + ".testing.svc.cluster.local"
		n := &resource.Name{Host: h, Registry: "Kubernetes", ShortName: short, Namespace: "testing"}
		if a != "" {
			n.Addresses = []netip.Addr{netip.MustParseAddr(a)}
		}
		t.Names[h] = n
	}
	return t
}

// published fails the test unless there is a Snapshot.
func published(t testing.TB, c *catalog.Catalog) *catalog.Snapshot {
	t.Helper()
	c.Publish()
	s := c.Snapshot()
	if s == nil {
		t.Fatalf("nothing published; pending: %q", c.Pending())
	}
	return s
}

// recorded returns a Catalog with what a real istiod sent.
func recorded(t testing.TB) *catalog.Catalog {
	t.Helper()
	c := catalog.New()
	c.SetNode("external", "external.svc.cluster.local")
	c.SetClusters(decode(t, "envoy.config.cluster.v3.Cluster", resource.DecodeCluster), nil)
	c.SetEndpoints(decode(t, "envoy.config.endpoint.v3.ClusterLoadAssignment", resource.DecodeEndpoints), nil)
	c.SetListeners(decode(t, "envoy.config.listener.v3.Listener", resource.DecodeListener), nil)
	c.SetRoutes(decode(t, "envoy.config.route.v3.RouteConfiguration", resource.DecodeRoutes), nil)
	c.SetNames(decode(t, "istio.networking.nds.v1.NameTable", resource.DecodeNameTable)[0])
	return c
}

func decode[T any, A any](t testing.TB, typ string, f func(A) (T, error)) []T {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "resource", "testdata", "istiod-1.31-laptop", typ+".pb"))
	if err != nil {
		t.Fatal(err)
	}
	var resp discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b, &resp); err != nil {
		t.Fatal(err)
	}
	var out []T
	for _, r := range resp.GetResources() {
		v, err := f(any(r.GetResource()).(A))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// TestPublishWaits: the first Snapshot comes when the last piece is there, in
// whatever order the pieces come.
func TestPublishWaits(t *testing.T) {
	steps := map[string]func(*catalog.Catalog){
		"clusters":  func(c *catalog.Catalog) { c.SetClusters([]*resource.Cluster{eds(echo80, echoHost)}, nil) },
		"endpoints": func(c *catalog.Catalog) { c.SetEndpoints([]*resource.Endpoints{endpoints(echo80)}, nil) },
		"listeners": func(c *catalog.Catalog) { c.SetListeners([]*resource.Listener{httpListener("0.0.0.0:80", "80")}, nil) },
		"routes":    func(c *catalog.Catalog) { c.SetRoutes([]*resource.RouteConfiguration{{Name: "80"}}, nil) },
		"names":     func(c *catalog.Catalog) { c.SetNames(&resource.NameTable{}) },
	}
	for _, order := range [][]string{
		{"clusters", "endpoints", "listeners", "routes", "names"},
		{"names", "listeners", "routes", "clusters", "endpoints"},
		{"listeners", "clusters", "names", "endpoints", "routes"},
	} {
		c := catalog.New()
		for _, step := range order {
			c.Publish()
			if c.Snapshot() != nil {
				t.Fatalf("%v: published before %s", order, step)
			}
			if len(c.Pending()) == 0 {
				t.Errorf("%v: nothing is pending before %s", order, step)
			}
			steps[step](c)
		}
		select {
		case <-c.Ready():
			t.Errorf("%v: ready before the last Publish", order)
		default:
		}
		published(t, c)
		<-c.Ready()
		if p := c.Pending(); len(p) != 0 {
			t.Errorf("%v: pending %q", order, p)
		}
	}
}

func TestEmptyMeshIsComplete(t *testing.T) {
	c := catalog.New()
	c.SetClusters(nil, nil)
	c.SetListeners(nil, nil)
	c.SetNames(&resource.NameTable{})
	s := published(t, c)
	if l := s.Listener(netip.MustParseAddrPort("10.0.0.1:80")); l != nil {
		t.Errorf("a listener of an empty mesh: %v", l.Config.Name)
	}
}

func TestWantedNames(t *testing.T) {
	c := catalog.New()
	other := eds("outbound|80|v1|"+echoHost, echoHost)
	c.SetClusters([]*resource.Cluster{eds(echo80, echoHost), other, {Name: "static"}}, nil)
	inbound := httpListener("0.0.0.0:15006", "inbound")
	inbound.Outbound = false
	inline := httpListener("0.0.0.0:81", "")
	inline.Chains[0].HTTP.Routes = &resource.RouteConfiguration{}
	def := tcpListener("10.0.0.1:82", "x")
	def.Default = &resource.FilterChain{HTTP: &resource.HTTPManager{RouteName: "82"}}
	c.SetListeners([]*resource.Listener{httpListener("0.0.0.0:80", "80"), inbound, inline, def}, nil)
	if diff := cmp.Diff([]string{other.Name, echo80}, c.EDSNames()); diff != "" {
		t.Errorf("EDS (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"80", "82"}, c.RDSNames()); diff != "" {
		t.Errorf("RDS (-want +got):\n%s", diff)
	}
	c.SetClusters(nil, []string{echo80})
	c.SetListeners(nil, []string{"0.0.0.0:80"})
	if diff := cmp.Diff([]string{other.Name}, c.EDSNames()); diff != "" {
		t.Errorf("EDS after removal (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"82"}, c.RDSNames()); diff != "" {
		t.Errorf("RDS after removal (-want +got):\n%s", diff)
	}
}

// TestRejectedIsNotWaitedFor: an answer that cannot be decoded must not hold
// back the rest of the mesh.
func TestRejectedIsNotWaitedFor(t *testing.T) {
	c := catalog.New()
	c.SetClusters([]*resource.Cluster{eds(echo80, echoHost)}, nil)
	c.SetListeners([]*resource.Listener{httpListener("0.0.0.0:80", "80")}, nil)
	c.SetNames(&resource.NameTable{})
	c.Publish()
	if c.Snapshot() != nil {
		t.Fatal("published without endpoints and routes")
	}
	c.Reject([]string{echo80, "unknown"}, []string{"80"})
	s := published(t, c)
	if t80 := s.Routes(&resource.HTTPManager{RouteName: "80"}); t80 != nil {
		t.Error("a rejected route configuration has a table")
	}

	// What is known stays.
	c.SetEndpoints([]*resource.Endpoints{endpoints(echo80, "10.1.0.1:80")}, nil)
	c.SetRoutes([]*resource.RouteConfiguration{{Name: "80"}}, nil)
	c.Reject([]string{echo80}, []string{"80"})
	s = published(t, c)
	if !s.Cluster(echo80).LB.HasHealthy() || s.Routes(&resource.HTTPManager{RouteName: "80"}) == nil {
		t.Error("a rejected answer wiped the last good one")
	}
}

// TestCellsOutliveSnapshots: load and endpoints of a cluster are the same
// before and after a change of its configuration, seen from both Snapshots.
func TestCellsOutliveSnapshots(t *testing.T) {
	c := recorded(t)
	before := published(t, c)
	h, err := before.Cluster(echo80).LB.Pick(nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Acquire()
	changed := eds(echo80, echoHost)
	changed.Balance.Policy = resource.RoundRobin
	c.SetClusters([]*resource.Cluster{changed}, nil)
	after := published(t, c)
	if before == after || after.Cluster(echo80).Config != changed || before.Cluster(echo80).Config == changed {
		t.Error("the new configuration is not in the new Snapshot alone")
	}
	again, err := after.Cluster(echo80).LB.Pick(nil)
	if err != nil {
		t.Fatal(err)
	}
	if again != h || again.Active() != 1 {
		t.Error("the host was lost with the Snapshot")
	}

	// Endpoints change without a Publish, and in both.
	c.SetEndpoints([]*resource.Endpoints{endpoints(echo80, "10.1.0.1:80", "10.1.0.2:80")}, nil)
	if c.Snapshot() != after {
		t.Error("a change of endpoints published a Snapshot")
	}
	for name, s := range map[string]*catalog.Snapshot{"old": before, "new": after} {
		if _, n := s.Cluster(echo80).LB.Endpoints().Total(); n != 2 {
			t.Errorf("%s: %d endpoints, want 2", name, n)
		}
	}
	c.SetEndpoints(nil, []string{echo80, "unknown"})
	if after.Cluster(echo80).LB.HasHealthy() {
		t.Error("withdrawn endpoints are still used")
	}
}

// TestPublishHoldsBack: a Snapshot with a cluster whose endpoints are still on
// their way is held back, and comes with them, without another Publish.
func TestPublishHoldsBack(t *testing.T) {
	c := recorded(t)
	first := published(t, c)
	added := "outbound|80||new.testing.svc.cluster.local"
	c.SetClusters([]*resource.Cluster{eds(added, "new.testing.svc.cluster.local")}, []string{"BlackHoleCluster"})
	c.Publish()
	if c.Snapshot() != first {
		t.Fatal("published without the endpoints")
	}
	c.SetEndpoints([]*resource.Endpoints{endpoints(added, "10.1.0.1:80")}, nil)
	s := c.Snapshot()
	if s == first {
		t.Fatal("not published with the endpoints")
	}
	if s.Cluster(added) == nil || s.Cluster("BlackHoleCluster") != nil || s.Cluster("nothing") != nil {
		t.Error("the Snapshot has the wrong clusters")
	}
	if c.Publish(); c.Snapshot() != s {
		t.Error("a Publish without a change published")
	}
}

// TestRemovedAndBack: what is removed is asked for again when it returns, and
// is not served from memory in between.
func TestRemovedAndBack(t *testing.T) {
	c := recorded(t)
	published(t, c)
	cfg := eds(echo80, echoHost)
	c.SetClusters(nil, []string{echo80})
	if s := published(t, c); s.Cluster(echo80) != nil {
		t.Fatal("removed cluster is there")
	}
	c.SetClusters([]*resource.Cluster{cfg}, nil)
	c.SetListeners(nil, []string{"0.0.0.0_80"})
	c.SetListeners([]*resource.Listener{httpListener("0.0.0.0:80", "80")}, nil)
	if p := c.Pending(); len(p) != 1 || p[0] != "endpoints "+echo80 {
		t.Errorf("pending %q, want the endpoints", p)
	}
	// A late answer for a name that is not wanted any more is no error.
	c.SetEndpoints([]*resource.Endpoints{endpoints("gone", "10.0.0.1:1")}, nil)
}

// TestSharedAssignment: two clusters of one EDS name have the same endpoints,
// also one that comes later.
func TestSharedAssignment(t *testing.T) {
	c := catalog.New()
	a, b := eds("a", echoHost), eds("b", echoHost)
	a.EDSName, b.EDSName = "shared", "shared"
	c.SetListeners(nil, nil)
	c.SetNames(&resource.NameTable{})
	c.SetClusters([]*resource.Cluster{a}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints("shared", "10.1.0.1:80")}, nil)
	c.SetClusters([]*resource.Cluster{b}, nil)
	s := published(t, c)
	if !s.Cluster("b").LB.HasHealthy() {
		t.Error("the later cluster has no endpoints")
	}
	c.SetClusters(nil, []string{"a"})
	c.SetEndpoints([]*resource.Endpoints{endpoints("shared")}, nil)
	if s = published(t, c); s.Cluster("b").LB.HasHealthy() {
		t.Error("the remaining cluster does not follow")
	}
}

// TestAssignmentChangesHands: one update takes an EDS name from a cluster and
// gives it to another. The set of names is the same, so nobody asks again.
func TestAssignmentChangesHands(t *testing.T) {
	c := catalog.New()
	a, b := eds("a", echoHost), eds("b", echoHost)
	a.EDSName, b.EDSName = "shared", "shared"
	c.SetListeners(nil, nil)
	c.SetNames(&resource.NameTable{})
	c.SetClusters([]*resource.Cluster{a}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints("shared", "10.1.0.1:80")}, nil)
	c.SetClusters([]*resource.Cluster{b}, []string{"a"})
	if s := published(t, c); !s.Cluster("b").LB.HasHealthy() {
		t.Error("the endpoints were forgotten on the way")
	}
}

func TestStaticClusters(t *testing.T) {
	c := catalog.New()
	static := &resource.Cluster{Name: "s", Endpoints: endpoints("s", "10.1.0.1:80")}
	c.SetClusters([]*resource.Cluster{static}, nil)
	c.SetListeners(nil, nil)
	c.SetNames(&resource.NameTable{})
	s := published(t, c)
	if _, n := s.Cluster("s").LB.Endpoints().Total(); n != 1 {
		t.Errorf("%d endpoints, want 1", n)
	}
	c.SetClusters([]*resource.Cluster{{Name: "s", Endpoints: endpoints("s", "10.1.0.1:80", "10.1.0.2:80")}}, nil)
	if _, n := s.Cluster("s").LB.Endpoints().Total(); n != 2 {
		t.Errorf("%d endpoints after the change, want 2", n)
	}
	c.SetClusters([]*resource.Cluster{eds("s", echoHost)}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints("s", "10.1.0.3:80")}, nil)
	if _, n := published(t, c).Cluster("s").LB.Endpoints().Total(); n != 1 {
		t.Errorf("%d endpoints after the change of kind, want 1", n)
	}
}

func TestPolicyClusters(t *testing.T) {
	s := published(t, recorded(t))
	pass, hole, echo := s.Cluster(catalog.PassthroughCluster), s.Cluster(catalog.BlackHoleCluster), s.Cluster(echo80)
	if !pass.Passthrough() || pass.BlackHole() || !hole.BlackHole() || hole.Passthrough() || echo.Passthrough() || echo.BlackHole() {
		t.Error("a policy cluster is not recognised")
	}
}
