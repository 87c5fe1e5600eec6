// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// fuzz feeds a decoder with changed forms of what a real istiod sent. check
// says what holds of everything that is decoded.
func fuzz[T any](f *testing.F, typ string, decode func(*anypb.Any) (T, error), check func(*testing.T, T)) {
	for _, r := range recorded(f, typ) {
		f.Add(r.GetResource().GetValue())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decode(&anypb.Any{TypeUrl: "type.googleapis.com/" + typ, Value: b})
		if err == nil {
			check(t, v)
		}
	})
}

func FuzzDecodeCluster(f *testing.F) {
	fuzz(f, "envoy.config.cluster.v3.Cluster", resource.DecodeCluster, func(t *testing.T, c *resource.Cluster) {
		if c.Name == "" || c.ConnectTimeout < 0 || c.DNSRefresh <= 0 {
			t.Errorf("cluster %+v", c)
		}
		if (c.Discovery == resource.EDS) != (c.EDSName != "") {
			t.Errorf("%v with the EDS name %q", c.Discovery, c.EDSName)
		}
		for _, m := range c.Transports {
			_ = c.TransportFor(&resource.Endpoint{Match: m.Match})
		}
		checkEndpoints(t, c.Endpoints)
	})
}

func FuzzDecodeEndpoints(f *testing.F) {
	fuzz(f, "envoy.config.endpoint.v3.ClusterLoadAssignment", resource.DecodeEndpoints, checkEndpoints)
}

func checkEndpoints(t *testing.T, e *resource.Endpoints) {
	if e == nil {
		return
	}
	for _, l := range e.Localities {
		for _, p := range l.Endpoints {
			if p == nil || p.Weight == 0 || !p.Address.IsValid() && p.Hostname == "" && p.Tunnel == "" {
				t.Errorf("endpoint %+v", p)
			}
		}
	}
}

func FuzzDecodeListener(f *testing.F) {
	fuzz(f, "envoy.config.listener.v3.Listener", resource.DecodeListener, func(t *testing.T, l *resource.Listener) {
		chains := l.Chains
		if l.Default != nil {
			chains = append(chains, l.Default)
		}
		for _, c := range chains {
			if n := count(c.TCP != nil, c.HTTP != nil, c.Refused != ""); n != 1 {
				t.Errorf("chain with %d ends: %+v", n, c)
			}
			if c.TCP != nil && len(c.TCP.Clusters) == 0 {
				t.Error("TCP without a cluster")
			}
			if c.HTTP == nil {
				continue
			}
			if n := count(c.HTTP.Routes != nil, c.HTTP.RouteName != ""); n != 1 {
				t.Errorf("connection manager with %d sources of routes", n)
			}
			if c.HTTP.Routes != nil {
				checkRoutes(t, c.HTTP.Routes)
			}
		}
	})
}

func FuzzDecodeRoutes(f *testing.F) {
	fuzz(f, "envoy.config.route.v3.RouteConfiguration", resource.DecodeRoutes, checkRoutes)
}

func checkRoutes(t *testing.T, rc *resource.RouteConfiguration) {
	for _, vh := range rc.VirtualHosts {
		for _, r := range vh.Routes {
			if n := count(r.Action != nil, r.Redirect != nil, r.Direct != nil); n != 1 {
				t.Errorf("route with %d actions: %+v", n, r)
			}
			if r.Action != nil && len(r.Action.Clusters) == 0 {
				t.Error("action without a cluster")
			}
		}
	}
}

func FuzzDecodeNameTable(f *testing.F) {
	fuzz(f, "istio.networking.nds.v1.NameTable", resource.DecodeNameTable, func(t *testing.T, nt *resource.NameTable) {
		for host, n := range nt.Names {
			if n.Host != host {
				t.Errorf("%q under %q", n.Host, host)
			}
		}
	})
}

func FuzzDecodeAddress(f *testing.F) {
	type either struct {
		w *resource.Workload
		s *resource.WDSService
	}
	decode := func(a *anypb.Any) (either, error) {
		w, s, err := resource.DecodeAddress(a)
		return either{w, s}, err
	}
	fuzz(f, "istio.workload.Address", decode, func(t *testing.T, e either) {
		if count(e.w != nil, e.s != nil) != 1 {
			t.Errorf("%+v: want one of the two", e)
		}
	})
}

func count(facts ...bool) (n int) {
	for _, f := range facts {
		if f {
			n++
		}
	}
	return n
}
