// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func TestALPN(t *testing.T) {
	istiod := []string{"istio-peer-exchange", "istio"}
	for _, tt := range []struct {
		name     string
		own      []string
		version  Version
		istio    bool
		override string
		want     []string
	}{
		{"h1", istiod, HTTP1, true, "", []string{"istio-http/1.1", "istio", "http/1.1"}},
		{"h2", append(istiod, "h2"), HTTP2, true, "", []string{"istio-h2", "istio", "h2"}},
		{"auto", istiod, Auto, true, "", []string{"istio-h2", "istio-http/1.1", "istio", "h2", "http/1.1"}},
		{"declined", []string{"h2", "http/1.1"}, HTTP1, true, "false", []string{"http/1.1"}},
		{"declined h2", []string{"h2", "http/1.1"}, HTTP2, true, "false", []string{"h2"}},
		{"no filter", append(istiod, "h2"), HTTP1, false, "", []string{"istio"}},
		{"no filter h2", append(istiod, "h2"), HTTP2, false, "", []string{"istio", "h2"}},
	} {
		c := &resource.Cluster{Istio: resource.IstioMeta{ALPNOverride: tt.override}}
		if got := httpALPN(c, tt.own, tt.version, tt.istio); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestDescribe(t *testing.T) {
	c := &resource.Cluster{
		Transports: []resource.TransportMatch{
			{Match: map[string]string{"tlsMode": "istio"}, Transport: resource.Transport{
				Kind: resource.IstioMTLS, SNI: "outbound_.80_._.a", ALPN: []string{"istio-peer-exchange", "istio", "h2"},
			}},
			{Transport: resource.Transport{Kind: resource.Plain, Name: "tlsMode-disabled"}},
		},
	}
	sidecar := &resource.Endpoint{Address: netip.MustParseAddrPort("10.0.0.1:80"), Match: map[string]string{"tlsMode": "istio"}}
	if d := Describe(c, sidecar); d.Kind != resource.IstioMTLS || d.SNI != "outbound_.80_._.a" || !slices.Equal(d.ALPN, []string{"istio"}) {
		t.Errorf("%+v", d)
	}
	if d := Describe(c, &resource.Endpoint{}); d.Kind != resource.Plain || d.ALPN != nil {
		t.Errorf("%+v", d)
	}
	if d := Describe(c, &resource.Endpoint{Tunnel: "connect_originate"}); d.Kind != resource.HBONE {
		t.Errorf("%+v", d)
	}
}
