// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"net/netip"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// TestListenerOfOneService: a port whose protocol istiod leaves to be detected
// has a listener for its service alone, with routes of its own for every host,
// by RDS or inline, and TCP beside it.
func TestListenerOfOneService(t *testing.T) {
	auto, inline := "outbound|8080||auto.testing.svc.cluster.local", "outbound|8081||inline.testing.svc.cluster.local"
	v2 := "outbound|8081|v2|inline.testing.svc.cluster.local"
	byName := httpListener("10.96.0.1:8080", "auto.testing.svc.cluster.local:8080")
	byName.Chains[0].Match.ApplicationProtocols = []string{"http/1.1", "h2c"}
	byName.Chains = append(byName.Chains, tcpChain(auto, resource.ChainMatch{}))
	within := httpListener("10.96.0.2:8081", "")
	split := host(inline, "*")
	split.Routes = append(split.Routes, host(v2, "*").Routes[0], &resource.Route{Redirect: &resource.Redirect{Status: 301}})
	within.Chains[0].HTTP = &resource.HTTPManager{Routes: &resource.RouteConfiguration{VirtualHosts: []*resource.VirtualHost{split}}}

	c := catalog.New()
	c.SetClusters([]*resource.Cluster{
		eds(auto, "auto.testing.svc.cluster.local"), eds(inline, "inline.testing.svc.cluster.local"), eds(v2, "inline.testing.svc.cluster.local"),
	}, nil)
	c.SetEndpoints([]*resource.Endpoints{endpoints(auto), endpoints(inline), endpoints(v2, "10.1.0.1:1")}, nil)
	c.SetListeners([]*resource.Listener{byName, within}, nil)
	c.SetRoutes([]*resource.RouteConfiguration{{
		Name: "auto.testing.svc.cluster.local:8080", VirtualHosts: []*resource.VirtualHost{host(auto, "*")},
	}}, nil)
	c.SetNames(&resource.NameTable{})
	s := published(t, c)

	for dst, want := range map[string]string{"10.96.0.1:8080": auto, "10.96.0.2:8081": inline} {
		dst := netip.MustParseAddrPort(dst)
		chain := s.Listener(dst).Match(dst, &catalog.Sniff{Protocols: []string{"h2c"}})
		if chain == nil || chain.HTTP == nil {
			t.Fatalf("%s: chain %v, want HTTP", dst, chain)
		}
		_, r := s.Routes(chain.HTTP).Match(&catalog.Request{Host: "any.host", Path: "/", Dst: dst})
		if r == nil || r.Action.Clusters[0].Name != want {
			t.Errorf("%s: route %v, want one to %s", dst, r, want)
		}
	}
	raw := netip.MustParseAddrPort("10.96.0.1:8080")
	if chain := s.Listener(raw).Match(raw, &catalog.Sniff{}); chain == nil || chain.TCP == nil {
		t.Errorf("not HTTP: chain %v, want TCP", chain)
	}

	// A subset of a service answers for it.
	if s.Echo(netip.MustParseAddr("10.96.0.1")) || !s.Echo(netip.MustParseAddr("10.96.0.2")) {
		t.Error("Echo does not follow the endpoints behind the routes")
	}
	for _, svc := range s.Services() {
		if svc.Ports[0].Protocol != "http" || len(svc.Addresses) != 1 {
			t.Errorf("%s: %+v", svc.Name, svc)
		}
	}
	before := s.Routes(within.Chains[0].HTTP)
	c.SetClusters([]*resource.Cluster{eds(auto, "auto.testing.svc.cluster.local")}, nil)
	c.SetListeners(nil, nil)
	if published(t, c).Routes(within.Chains[0].HTTP) != before {
		t.Error("an unchanged table was compiled again")
	}
}

func TestDump(t *testing.T) {
	d := published(t, recorded(t)).Dump()
	if len(d.Clusters) != 9 || len(d.Listeners) != 6 || len(d.Routes) != 1 || len(d.Names.Names) != 3 {
		t.Errorf("%d clusters, %d listeners, %d routes, %d names; want 9, 6, 1, 3",
			len(d.Clusters), len(d.Listeners), len(d.Routes), len(d.Names.Names))
	}
	for _, c := range d.Clusters {
		if c.Config.Name == echo80 && c.Endpoints.Localities[0].Endpoints[0].Address.String() != "172.30.0.10:15443" {
			t.Errorf("%s: %+v", echo80, c.Endpoints)
		}
	}
}
