// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
	"github.com/nasp-tun/nasp-tun/mesh/resource/istiopb"
)

// synced waits until the server has seen every acknowledgement. Only then does
// a push of several types come in istiod's order.
func (a *ads) synced(m *minimesh.Mesh) {
	a.t.Helper()
	if err := m.WaitSynced(waitCtx(a.t), 1); err != nil {
		a.t.Fatal(err)
	}
}

// everything subscribes to all that the default mesh has.
func (a *ads) everything(m *minimesh.Mesh) {
	a.t.Helper()
	a.subscribe(clusterType)
	a.next()
	a.subscribe(endpointType, "outbound|80||"+echoHost, "outbound|7070||"+echoHost, "outbound|9000||"+echoHost)
	a.next()
	a.subscribe(listenerType)
	a.next()
	a.subscribe(routeType, "80", "7070")
	a.next()
	a.subscribe(nameTableType)
	a.next()
	a.synced(m)
}

func TestServiceComesAndGoes(t *testing.T) {
	m := start(t, minimesh.Config{})
	a := laptopADS(t, m)
	a.everything(m)

	late := minimesh.Service{
		Name: "late", Namespace: "testing",
		Ports: []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}, {Number: 3306, Protocol: minimesh.TCP, App: minimesh.Banner}},
	}
	if err := m.SetService(late); err != nil {
		t.Fatal(err)
	}
	// In istiod's order, and of each type only what is new.
	for _, want := range []string{
		"outbound|3306||late.testing.svc.cluster.local outbound|80||late.testing.svc.cluster.local",
		"10.96.0.11_3306", "80", "",
	} {
		if got := resourceNames(a.next()); got != want {
			t.Errorf("pushed %q, want %q", got, want)
		}
	}
	// Its endpoints are not asked for yet.
	a.subscribe(endpointType, "outbound|80||late.testing.svc.cluster.local", "outbound|3306||late.testing.svc.cluster.local")
	if got := len(a.next().GetResources()); got != 2 {
		t.Errorf("%d assignments, want 2", got)
	}
	a.synced(m)

	// Fewer endpoints are an EDS change and nothing else.
	late.Endpoints = []minimesh.Endpoint{{}}
	before := m.Endpoints("late", "testing", 80)
	if err := m.SetService(late); err != nil {
		t.Fatal(err)
	}
	r := a.next()
	if r.GetTypeUrl() != endpointType || len(r.GetResources()) != 2 {
		t.Errorf("pushed %q of %s", resourceNames(r), r.GetTypeUrl())
	}
	if got := m.Endpoints("late", "testing", 80); !slices.Equal(got, before[:1]) {
		t.Errorf("the endpoint that stays has moved from %v to %v", before, got)
	}

	a.synced(m)
	m.RemoveService("late", "testing")
	for _, want := range []string{
		"[outbound|3306||late.testing.svc.cluster.local outbound|80||late.testing.svc.cluster.local]",
		"[outbound|3306||late.testing.svc.cluster.local outbound|80||late.testing.svc.cluster.local]",
		"[10.96.0.11_3306]", "[]", "[]",
	} {
		if got := fmt.Sprint(a.next().GetRemovedResources()); got != want {
			t.Errorf("removed %s, want %s", got, want)
		}
	}
}

func TestRegistryOnly(t *testing.T) {
	m := start(t, minimesh.Config{})
	a := laptopADS(t, m)
	a.everything(m)
	m.SetRegistryOnly(true)
	r := a.next()
	if got := resourceNames(r); got != "0.0.0.0_7070 0.0.0.0_80 virtualOutbound" {
		t.Errorf("pushed %q", got)
	}
	out := unpack[*listenerpb.Listener](t, r, "virtualOutbound")
	tcp := unpackAny[*tcppb.TcpProxy](t, out.GetFilterChains()[1].GetFilters()[0].GetTypedConfig())
	if tcp.GetCluster() != "BlackHoleCluster" {
		t.Errorf("unknown destinations go to %q", tcp.GetCluster())
	}
	hosts := unpack[*routepb.RouteConfiguration](t, a.next(), "80").GetVirtualHosts()
	if last := hosts[len(hosts)-1]; last.GetName() != "block_all" || last.GetRoutes()[0].GetDirectResponse().GetStatus() != 502 {
		t.Errorf("unknown hosts get %v", last)
	}
}

func TestNACKIsNoted(t *testing.T) {
	m := start(t, minimesh.Config{})
	a := laptopADS(t, m)
	a.everything(m)
	// Something that this package would never send, under a name it has.
	bad := &anypb.Any{TypeUrl: clusterType, Value: []byte("garbage")}
	m.Inject(clusterType, echoCluster, bad)
	r := a.receive()
	if !proto.Equal(r.GetResources()[0].GetResource(), bad) {
		t.Errorf("pushed %v", r)
	}
	a.send(&discoverypb.DeltaDiscoveryRequest{
		TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(),
		ErrorDetail: &statuspb.Status{Code: int32(codes.Internal), Message: "cannot parse"},
	})
	a.synced(m) // it counts as answered, and is not sent again
	if got, want := fmt.Sprint(m.NACKs()), "[{"+clusterType+" cannot parse}]"; got != want {
		t.Errorf("noted %s, want %s", got, want)
	}
	m.Inject(clusterType, echoCluster, nil)
	if got := resourceNames(a.next()); got != echoCluster {
		t.Errorf("pushed %q", got)
	}
}

func TestResume(t *testing.T) {
	m := start(t, minimesh.Config{})
	a := laptopADS(t, m)
	a.everything(m)
	m.StopIstiod()
	if _, err := a.st.Recv(); err == nil {
		t.Error("the stream goes on without istiod")
	}
	if err := m.WaitClients(waitCtx(t), 0); err != nil {
		t.Fatal(err)
	}
	addr := m.IstiodAddr()
	if err := m.StartIstiod(); err != nil {
		t.Fatal(err)
	}
	if m.IstiodAddr() != addr {
		t.Errorf("istiod has moved from %v to %v", addr, m.IstiodAddr())
	}
	a = laptopADS(t, m)
	a.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: clusterType, InitialResourceVersions: map[string]string{echoCluster: "", "gone": ""}})
	r := a.next()
	// Clusters have no versions, so all come again, and what went is told.
	if len(r.GetResources()) != 6 || fmt.Sprint(r.GetRemovedResources()) != "[gone]" {
		t.Errorf("resumed with %q, removed %v", resourceNames(r), r.GetRemovedResources())
	}
}

func TestNodeIsChecked(t *testing.T) {
	m := start(t, minimesh.Config{})
	tests := []struct {
		name string
		edit func(*corepb.Node)
		code codes.Code
		want string
	}{
		{"none", func(n *corepb.Node) { proto.Reset(n) }, codes.InvalidArgument, "missing node information"},
		{"three parts", func(n *corepb.Node) { n.Id = "sidecar~192.0.2.2~lap.external" }, codes.InvalidArgument, "missing parts"},
		{"router", func(n *corepb.Node) { n.Id = strings.Replace(n.Id, "sidecar", "router", 1) }, codes.InvalidArgument, "router"},
		{"no address", func(n *corepb.Node) {
			n.Id = "sidecar~lap~lap.external~external.svc.cluster.local"
			delete(n.Metadata.Fields, "INSTANCE_IPS")
		}, codes.InvalidArgument, "no valid IP"},
		{"other namespace", func(n *corepb.Node) { n.Metadata.Fields["NAMESPACE"] = structpb.NewStringValue("testing") }, codes.PermissionDenied, "NAMESPACE"},
		{"other account", func(n *corepb.Node) { n.Metadata.Fields["SERVICE_ACCOUNT"] = structpb.NewStringValue("admin") }, codes.PermissionDenied, "SERVICE_ACCOUNT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := laptopADS(t, m)
			n := laptopNode()
			tt.edit(n)
			if err := a.st.Send(&discoverypb.DeltaDiscoveryRequest{Node: n, TypeUrl: clusterType}); err != nil {
				t.Fatal(err)
			}
			_, err := a.st.Recv()
			if status.Code(err) != tt.code || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("error %v, want %v with %q", err, tt.code, tt.want)
			}
		})
	}
}

// A client of the service's own namespace may use the bare name.
func TestShortNameOfOwnNamespace(t *testing.T) {
	m := start(t, minimesh.Config{})
	a := openADS(t, dial(t, m, m.MintToken("default", "testing"), nil))
	n := laptopNode()
	n.Id = "sidecar~192.0.2.2~lap.testing~testing.svc.cluster.local"
	n.Metadata.Fields["NAMESPACE"] = structpb.NewStringValue("testing")
	n.Metadata.Fields["SERVICE_ACCOUNT"] = structpb.NewStringValue("default")
	err := a.st.Send(&discoverypb.DeltaDiscoveryRequest{Node: n, TypeUrl: routeType, ResourceNamesSubscribe: []string{"80"}})
	if err != nil {
		t.Fatal(err)
	}
	domains := unpack[*routepb.RouteConfiguration](t, a.receive(), "80").GetVirtualHosts()[0].GetDomains()
	if !slices.Contains(domains, "echo") {
		t.Errorf("domains %q", domains)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestAddressFamilies(t *testing.T) {
	ports := []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}, {Number: 90, Protocol: minimesh.TCP}, {Number: 91, Protocol: minimesh.Auto}}
	m := start(t, minimesh.Config{Services: []minimesh.Service{
		{Name: "six", Namespace: "testing", VIPs: []netip.Addr{addr("fd00::6")}, Ports: ports},
		{Name: "dual", Namespace: "testing", VIPs: []netip.Addr{addr("10.96.0.20"), addr("fd00::20")}, Ports: ports},
		{
			Name: "pods", Namespace: "testing", Headless: true, Ports: []minimesh.Port{{Number: 9095, Protocol: minimesh.TCP}},
			Endpoints: []minimesh.Endpoint{{Address: addr("127.0.0.31")}, {Address: addr("127.0.0.32"), Name: "second"}},
		},
	}})
	a := laptopADS(t, m)
	a.subscribe(listenerType)
	r := a.next()
	want := []string{
		"0.0.0.0_80", "10.96.0.20_90", "10.96.0.20_91", "127.0.0.31_9095", "127.0.0.32_9095",
		"fd00::6_90", "fd00::6_91", "virtualInbound", "virtualOutbound",
	}
	if got := resourceNames(r); got != strings.Join(want, " ") {
		t.Errorf("listeners %q, want %q", got, want)
	}
	for name, more := range map[string]string{"0.0.0.0_80": "::", "10.96.0.20_90": "fd00::20", "virtualOutbound": "::"} {
		l := unpack[*listenerpb.Listener](t, r, name)
		if got := l.GetAdditionalAddresses(); len(got) != 1 || got[0].GetAddress().GetSocketAddress().GetAddress() != more {
			t.Errorf("%s also at %v, want %s", name, got, more)
		}
	}
	a.subscribe(routeType, "80", "dual.testing.svc.cluster.local:91")
	r = a.next()
	if d := unpack[*routepb.RouteConfiguration](t, r, "80").GetVirtualHosts()[1].GetDomains(); !slices.Contains(d, "[fd00::6]") {
		t.Errorf("domains %q", d)
	}
	if d := unpack[*routepb.RouteConfiguration](t, r, "dual.testing.svc.cluster.local:91").GetVirtualHosts(); len(d) != 1 || d[0].GetDomains()[0] != "*" {
		t.Errorf("hosts of a sniffed port: %v", d)
	}
	a.subscribe(nameTableType)
	table := nameTable(t, byName(a.next())[""]).GetTable()
	for host, want := range map[string]string{
		"dual.testing.svc.cluster.local":        "[10.96.0.20 fd00::20]",
		"pods.testing.svc.cluster.local":        "[127.0.0.31 127.0.0.32]",
		"second.pods.testing.svc.cluster.local": "[127.0.0.32]",
	} {
		if got := fmt.Sprint(table[host].GetIps()); got != want {
			t.Errorf("%s is %s, want %s", host, got, want)
		}
	}
}

func TestEndpointShapes(t *testing.T) {
	m := start(t, minimesh.Config{Services: []minimesh.Service{
		{
			Name: "mixed", Namespace: "testing", Ports: []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}},
			Endpoints: []minimesh.Endpoint{
				{Zone: "a", Weight: 3},
				{Zone: "b", Priority: 1, Unhealthy: true},
				{Zone: "b", Priority: 1, External: map[uint16]netip.AddrPort{80: netip.MustParseAddrPort("192.0.2.7:8080")}},
			},
		},
		{Name: "clear", Namespace: "testing", TLS: minimesh.Disabled, Ports: []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}}},
		{
			Name: "deep", Namespace: "testing", TLS: minimesh.HBONE, Ports: []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}},
			Endpoints: []minimesh.Endpoint{{Address: addr("10.244.0.9")}, {}},
		},
	}})
	a := laptopADS(t, m)
	a.subscribe(endpointType, "outbound|80||mixed.testing.svc.cluster.local", "outbound|80||clear.testing.svc.cluster.local", "outbound|80||deep.testing.svc.cluster.local")
	r := a.next()
	g := unpack[*endpointpb.ClusterLoadAssignment](t, r, "outbound|80||mixed.testing.svc.cluster.local").GetEndpoints()
	if len(g) != 2 || g[0].GetLoadBalancingWeight().GetValue() != 3 || g[1].GetPriority() != 1 || len(g[1].GetLbEndpoints()) != 2 ||
		g[1].GetLbEndpoints()[0].GetHealthStatus() != corepb.HealthStatus_UNHEALTHY ||
		g[1].GetLbEndpoints()[1].GetEndpoint().GetAddress().GetSocketAddress().GetAddress() != "192.0.2.7" {
		t.Errorf("localities %v", g)
	}
	clear := unpack[*endpointpb.ClusterLoadAssignment](t, r, "outbound|80||clear.testing.svc.cluster.local").GetEndpoints()[0].GetLbEndpoints()[0]
	if _, ok := clear.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"]; ok {
		t.Errorf("an endpoint without a sidecar has a TLS mode: %v", clear)
	}
	deep := unpack[*endpointpb.ClusterLoadAssignment](t, r, "outbound|80||deep.testing.svc.cluster.local").GetEndpoints()[0].GetLbEndpoints()[0]
	if in := deep.GetEndpoint().GetAddress().GetEnvoyInternalAddress(); in.GetServerListenerName() != "connect_originate" || in.GetEndpointId() != "10.244.0.9:80" {
		t.Errorf("an endpoint behind HBONE is at %v", deep)
	}
	if got := fmt.Sprint(m.Endpoints("deep", "testing", 80)); got != "[10.244.0.9:80 10.244.0.11:80]" {
		t.Errorf("endpoints behind HBONE at %s", got)
	}

	testAmbient(t, a)
}

// testAmbient looks at what a mesh with HBONE serves beside the rest: it is an
// ambient one.
func testAmbient(t *testing.T, a *ads) {
	t.Helper()
	a.subscribe(addressType)
	r := a.next()
	var w istiopb.Address
	for _, x := range r.GetResources() {
		if x.GetName() == "Kubernetes//Pod/testing/deep-1" {
			if err := proto.Unmarshal(x.GetResource().GetValue(), &w); err != nil {
				t.Fatal(err)
			}
			if x.GetVersion() == "" {
				t.Error("an address has no version")
			}
		}
	}
	if p := w.GetWorkload(); p.GetTunnelProtocol() != istiopb.TunnelProtocol_HBONE || fmt.Sprint(p.GetAddresses()) != "[[10 244 0 9]]" {
		t.Errorf("workload %v of %q", p, resourceNames(r))
	}
	a.subscribe(clusterType)
	got, want := byName(a.next())["connect_originate"], recorded(t, "envoy.config.cluster.v3.Cluster")["connect_originate"]
	if d := diffAny(t, want, got); d != "" {
		t.Errorf("connect_originate (-istiod +minimesh):\n%s", d)
	}
	a.subscribe(listenerType)
	got, want = byName(a.next())["connect_originate"], recorded(t, "envoy.config.listener.v3.Listener")["connect_originate"]
	if d := diffAny(t, want, got); d != "" {
		t.Errorf("connect_originate (-istiod +minimesh):\n%s", d)
	}
}

func TestConfigIsChecked(t *testing.T) {
	port := []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}}
	tests := []struct {
		want string
		s    minimesh.Service
	}{
		{"a name and a namespace", minimesh.Service{Name: "a", Ports: port}},
		{"no ports", minimesh.Service{Name: "a", Namespace: "b"}},
		{"unknown protocol", minimesh.Service{Name: "a", Namespace: "b", Ports: []minimesh.Port{{Number: 80}}}},
		{"unknown app", minimesh.Service{Name: "a", Namespace: "b", Ports: []minimesh.Port{{Number: 80, Protocol: minimesh.TCP, App: "x"}}}},
		{"unknown TLS mode", minimesh.Service{Name: "a", Namespace: "b", Ports: port, TLS: "x"}},
		{"headless", minimesh.Service{Name: "a", Namespace: "b", Ports: port, Headless: true, VIPs: []netip.Addr{addr("10.0.0.1")}}},
		{"two endpoints", minimesh.Service{Name: "a", Namespace: "b", Ports: port, Endpoints: []minimesh.Endpoint{{Name: "c"}, {Name: "c"}}}},
	}
	for _, tt := range tests {
		_, err := minimesh.New(minimesh.Config{Services: []minimesh.Service{tt.s}})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}
