// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A world is the mesh at one moment, as its resources are made of it.
type world struct {
	services     []placed // by host
	registryOnly bool
	dual         bool // some service has an IPv6 address
	trustDomain  string
	clusterID    string
	gateway      netip.AddrPort // not valid: endpoints are reached directly
	// injected resources stand in place of those of the same name.
	injected map[string]map[string]*anypb.Any
}

// A placed service knows where its endpoints are.
type placed struct {
	Service
	where []map[uint16]netip.AddrPort // by endpoint, then service port
}

// A view is the set of resources that clients of one namespace see.
type view struct {
	types map[string]map[string]entry
}

type entry struct {
	body    *anypb.Any
	version string // of the content; clients see it where istiod sends one
}

func (v *view) put(typ, name string, m proto.Message) {
	v.putAny(typ, name, packed(m))
}

func (v *view) putAny(typ, name string, a *anypb.Any) {
	if v.types[typ] == nil {
		v.types[typ] = map[string]entry{}
	}
	sum := sha256.Sum256(a.GetValue())
	v.types[typ][name] = entry{body: a, version: hex.EncodeToString(sum[:8])}
}

// diff returns what a subscription lacks and what it holds too much.
func (v *view) diff(typ string, subscribe []string, sub cache.Subscription) *discoverypb.DeltaDiscoveryResponse {
	have, wanted := sub.ReturnedResources(), sub.SubscribedResources()
	resp := &discoverypb.DeltaDiscoveryResponse{TypeUrl: typ}
	for _, name := range slices.Sorted(maps.Keys(v.types[typ])) {
		e := v.types[typ][name]
		if _, ok := wanted[name]; !ok && !sub.IsWildcard() {
			continue
		}
		if version, ok := have[name]; ok && version == e.version {
			continue
		}
		r := &discoverypb.Resource{Name: name, Resource: e.body}
		if typ == addressType {
			r.Version = e.version // the only type for which istiod tells versions
		}
		resp.Resources = append(resp.Resources, r)
	}
	gone := map[string]bool{}
	for name := range have {
		if _, ok := v.types[typ][name]; !ok {
			gone[name] = true
		}
	}
	for _, name := range subscribe {
		if _, ok := v.types[typ][name]; !ok && name != "*" {
			gone[name] = true
		}
	}
	resp.RemovedResources = slices.Sorted(maps.Keys(gone))
	return resp
}

// build makes the resources of a world for clients of a namespace.
func (w *world) build(dnsNamespace string) *view {
	v := &view{types: map[string]map[string]entry{}}
	for _, c := range w.builtinClusters() {
		v.put(resource.ClusterType, c.GetName(), c)
	}
	for i := range w.services {
		s := &w.services[i]
		for _, p := range s.Ports {
			c := w.cluster(s, p)
			v.put(resource.ClusterType, c.GetName(), c)
			if !s.Headless {
				e := w.endpoints(s, p)
				v.put(resource.EndpointType, e.GetClusterName(), e)
			}
		}
	}
	for _, l := range w.listeners(dnsNamespace) {
		v.put(resource.ListenerType, l.GetName(), l)
	}
	for _, r := range w.routes(dnsNamespace) {
		v.put(resource.RouteType, r.GetName(), r)
	}
	v.putAny(nameTableType, "", w.nameTable())
	if w.ambient() {
		for name, a := range w.addresses() {
			v.putAny(addressType, name, a)
		}
	}
	for typ, set := range w.injected {
		for name, a := range set {
			v.putAny(typ, name, a)
		}
	}
	return v
}

// clusterName is istiod's name of the cluster of a service port.
func clusterName(s *placed, p Port) string {
	return fmt.Sprintf("outbound|%d||%s", p.Number, s.host())
}

// sni is the server name that a gateway routes by.
func sni(s *placed, p Port) string {
	return fmt.Sprintf("outbound_.%d_._.%s", p.Number, s.host())
}

// sans are the identities that clients accept from a service.
func (w *world) sans(s *placed) []string {
	if s.SANs != nil {
		return s.SANs
	}
	return []string{"spiffe://" + w.trustDomain + "/ns/" + s.Namespace + "/sa/" + s.account()}
}

// meshed reports whether clients reach the service by mTLS.
func (s *Service) meshed() bool { return s.TLS == Strict || s.TLS == Permissive }

// domainIP is an address as istiod puts it into the domains of a route.
func domainIP(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// listenerName is istiod's name of a listener.
func listenerName(a netip.Addr, port uint16) string {
	return fmt.Sprintf("%s_%d", a, port)
}

// byHost orders services as istiod's output is ordered: by name.
func byHost(a, b placed) int { return strings.Compare(a.host(), b.host()) }

// packed wraps a message. Marshalling is deterministic, since equal content
// must have an equal version.
func packed(m proto.Message) *anypb.Any {
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // messages of our own making always marshal
	}
	return a
}
