// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/resource/istiopb"
)

// kinds are the messages that a case may be of, by the first word of its file
// name.
var kinds = map[string]struct {
	message proto.Message
	decoder int
}{
	"cluster":   {&clusterv3.Cluster{}, 0},
	"endpoints": {&endpointv3.ClusterLoadAssignment{}, 1},
	"listener":  {&listenerv3.Listener{}, 2},
	"routes":    {&routev3.RouteConfiguration{}, 3},
	"names":     {&istiopb.NameTable{}, 4},
	"address":   {&istiopb.Address{}, 5},
}

// TestDecode walks testdata/decode. Each file holds pairs of a message in text
// form and what it decodes to, or the error:
//
//	-- a thing --
//	name: "x"
//	-- a thing: want --
//	Name: "x"
func TestDecode(t *testing.T) {
	files, err := filepath.Glob("testdata/decode/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".txtar"), "-")
		kind, ok := kinds[name]
		if !ok {
			t.Errorf("%s: not of a known kind", file)
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			in, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out := &txtar.Archive{Comment: in.Comment}
			for _, f := range in.Files {
				if strings.HasSuffix(f.Name, ": want") {
					continue
				}
				m := proto.Clone(kind.message)
				if err := prototext.Unmarshal(f.Data, m); err != nil {
					t.Fatalf("%s: %v", f.Name, err)
				}
				out.Files = append(out.Files, f, txtar.File{Name: f.Name + ": want", Data: decodeText(t, m, kind.decoder)})
			}
			compareGolden(t, file, txtar.Format(out))
		})
	}
}

func decodeText(t *testing.T, m proto.Message, decoder int) []byte {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	v, err := decoders[decoder].decode(&discoveryv3.Resource{Resource: a})
	if err != nil {
		// protobuf varies its spaces, lest anyone depend on its words.
		return []byte("error: " + strings.ReplaceAll(err.Error(), "\u00a0", " ") + "\n")
	}
	show(&b, reflect.ValueOf(v), 0)
	return []byte(strings.TrimPrefix(b.String(), "\n") + "\n")
}

// TestWrongType: each decoder reads its own type only, and no garbage.
func TestWrongType(t *testing.T) {
	wrong, err := anypb.New(&discoveryv3.DiscoveryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range decoders {
		for name, a := range map[string]*anypb.Any{
			"nothing": nil, "another type": wrong,
			"garbage": {TypeUrl: "type.googleapis.com/" + d.typ, Value: []byte("\xff\xff")},
		} {
			if _, err := d.decode(&discoveryv3.Resource{Resource: a}); err == nil {
				t.Errorf("%s: %s was decoded", d.typ, name)
			}
		}
	}
}

func TestSANMatch(t *testing.T) {
	const id = "spiffe://td/ns/a/sa/b"
	for _, tt := range []struct {
		m    resource.SANMatch
		want bool
	}{
		{resource.SANMatch{Exact: id}, true},
		{resource.SANMatch{Exact: id + "c"}, false},
		{resource.SANMatch{Prefix: "spiffe://td/"}, true},
		{resource.SANMatch{Prefix: id + "/"}, false},
		{resource.SANMatch{Suffix: "/sa/b"}, true},
		{resource.SANMatch{Suffix: "x" + id}, false},
		{resource.SANMatch{}, false}, // says nothing, so it proves nothing
	} {
		if got := tt.m.Matches(id); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.m, got, tt.want)
		}
	}
}

func TestEndpointKeys(t *testing.T) {
	for want, e := range map[string]resource.Endpoint{
		"10.0.0.1:80":      {Address: netip.MustParseAddrPort("10.0.0.1:80"), Hostname: "pod"},
		"[fd00::1]:80":     {Address: netip.MustParseAddrPort("[fd00::1]:80")},
		"db.example.com:1": {Hostname: "db.example.com", Port: 1},
	} {
		if got := e.Key(); got != want {
			t.Errorf("Key = %q, want %q", got, want)
		}
	}
}

func TestTotal(t *testing.T) {
	var none *resource.Endpoints
	if h, n := none.Total(); h != 0 || n != 0 {
		t.Errorf("nothing has %d of %d", h, n)
	}
	e := resource.Endpoints{Localities: []resource.Locality{
		{Endpoints: []*resource.Endpoint{{}, {Health: resource.Unhealthy}}}, {Endpoints: []*resource.Endpoint{{Health: resource.Degraded}}},
	}}
	if h, n := e.Total(); h != 1 || n != 3 {
		t.Errorf("%d of %d healthy, want 1 of 3", h, n)
	}
}

func TestFirstService(t *testing.T) {
	m := resource.IstioMeta{}
	if s := m.Service(); s != (resource.ServiceRef{}) {
		t.Errorf("service %+v of none", s)
	}
	m.Services = []resource.ServiceRef{{Host: "a"}, {Host: "b"}}
	if s := m.Service(); s.Host != "a" {
		t.Errorf("service %q, want the first", s.Host)
	}
}

func TestTransportFor(t *testing.T) {
	c := &resource.Cluster{
		Transports: []resource.TransportMatch{
			{Name: "hbone", Match: map[string]string{"tunnel": "http"}, Transport: resource.Transport{Kind: resource.HBONE}},
			{Name: "mtls", Match: map[string]string{"tlsMode": "istio"}, Transport: resource.Transport{Kind: resource.IstioMTLS}},
			{Name: "disabled", Transport: resource.Transport{Kind: resource.Plain, Name: "disabled"}},
		},
		Transport: resource.Transport{Kind: resource.Unsupported, Name: "default"},
	}
	for _, tt := range []struct {
		name string
		e    resource.Endpoint
		want resource.TransportKind
	}{
		{"mTLS", resource.Endpoint{Match: map[string]string{"tlsMode": "istio"}}, resource.IstioMTLS},
		{"first of two", resource.Endpoint{Match: map[string]string{"tlsMode": "istio", "tunnel": "http"}}, resource.HBONE},
		{"another value", resource.Endpoint{Match: map[string]string{"tlsMode": "istio-gateway"}}, resource.Plain},
		{"none", resource.Endpoint{}, resource.Plain},
		{"an internal address is a tunnel whatever matches", resource.Endpoint{Tunnel: "connect_originate", Match: map[string]string{"tlsMode": "istio"}}, resource.HBONE},
	} {
		if got := c.TransportFor(&tt.e); got.Kind != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got.Kind, tt.want)
		}
	}
	c.Transports = c.Transports[:2]
	if got := c.TransportFor(&resource.Endpoint{}); got.Name != "default" {
		t.Errorf("no match: %q, want the default", got.Name)
	}
}
