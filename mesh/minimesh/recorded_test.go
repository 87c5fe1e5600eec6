// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
	"github.com/nasp-tun/nasp-tun/mesh/resource/istiopb"
)

// recorded returns what a real istiod sent, by name.
func recorded(t *testing.T, file string) map[string]*anypb.Any {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "resource", "testdata", "istiod-1.31-laptop", file+".pb"))
	if err != nil {
		t.Fatal(err)
	}
	var r discoverypb.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return byName(&r)
}

func byName(r *discoverypb.DeltaDiscoveryResponse) map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	for _, x := range r.GetResources() {
		out[x.GetName()] = x.GetResource()
	}
	return out
}

// asRecorded is the cluster that the recording was made in. Its client was on
// another network, hence the gateway; the services without endpoints were
// there and could not be reached from it.
func asRecorded() minimesh.Config {
	vip := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	return minimesh.Config{Gateway: true, Services: []minimesh.Service{
		{
			Name: "kubernetes", Namespace: "default", VIPs: vip("10.96.0.1"), SANs: []string{},
			Endpoints: []minimesh.Endpoint{}, Ports: []minimesh.Port{{Number: 443, Protocol: minimesh.TCP}},
		},
		{
			Name: "echo", Namespace: "testing", VIPs: vip("10.96.158.50"), Endpoints: []minimesh.Endpoint{{}},
			Ports: []minimesh.Port{{Number: 80, Target: 8080, Protocol: minimesh.HTTP}, {Number: 9000, Protocol: minimesh.TCP}},
		},
		{
			Name: "istio-eastwestgateway", Namespace: "istio-system", VIPs: vip("10.96.13.168"), ServiceAccount: "eastwest",
			Endpoints: []minimesh.Endpoint{},
			Ports:     []minimesh.Port{{Number: 15443, Protocol: minimesh.TCP}, {Number: 15012, Protocol: minimesh.TCP}},
		},
	}}
}

// The resources are those of a real istiod, field by field.
func TestAsRecorded(t *testing.T) {
	m := start(t, asRecorded())
	tests := []struct {
		file, typ string
		names     []string
		// skip is what a client never sees (the inbound side is kept short),
		// or sees of an ambient mesh only.
		skip []string
	}{
		{file: "envoy.config.cluster.v3.Cluster", typ: clusterType, skip: []string{"connect_originate"}},
		{file: "envoy.config.endpoint.v3.ClusterLoadAssignment", typ: endpointType, names: slices.Sorted(maps.Keys(
			recorded(t, "envoy.config.endpoint.v3.ClusterLoadAssignment")))},
		{file: "envoy.config.listener.v3.Listener", typ: listenerType, skip: []string{"connect_originate", "virtualInbound"}},
		{file: "envoy.config.route.v3.RouteConfiguration", typ: routeType, names: []string{"80"}},
	}
	a := laptopADS(t, m)
	for _, tt := range tests {
		a.subscribe(tt.typ, tt.names...)
		got, want := byName(a.next()), recorded(t, tt.file)
		for _, name := range tt.skip {
			delete(got, name)
			delete(want, name)
		}
		if tt.typ == endpointType {
			moveGateway(t, m, want)
		}
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			t.Errorf("%s (-istiod +minimesh):\n%s", tt.file, d)
		}
	}
	a.subscribe(nameTableType)
	got, want := nameTable(t, byName(a.next())[""]), nameTable(t, recorded(t, "istio.networking.nds.v1.NameTable")[""])
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("name table (-istiod +minimesh):\n%s", d)
	}
}

// moveGateway puts our gateway's address where the recording has its own.
func moveGateway(t *testing.T, m *minimesh.Mesh, set map[string]*anypb.Any) {
	t.Helper()
	for name, a := range set {
		e := unpackAny[*endpointpb.ClusterLoadAssignment](t, a)
		for _, g := range e.GetEndpoints() {
			for _, ep := range g.GetLbEndpoints() {
				s := ep.GetEndpoint().GetAddress().GetSocketAddress()
				s.Address = m.GatewayAddr().Addr().String()
				s.PortSpecifier = &corepb.SocketAddress_PortValue{PortValue: uint32(m.GatewayAddr().Port())}
			}
		}
		b, err := anypb.New(e)
		if err != nil {
			t.Fatal(err)
		}
		set[name] = b
	}
}

func nameTable(t *testing.T, a *anypb.Any) *istiopb.NameTable {
	t.Helper()
	var n istiopb.NameTable
	if err := proto.Unmarshal(a.GetValue(), &n); err != nil {
		t.Fatal(err)
	}
	return &n
}

func diffAny(t *testing.T, want, got *anypb.Any) string {
	t.Helper()
	return cmp.Diff(want, got, protocmp.Transform())
}
