// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// ErrNotReady is returned while there is no Snapshot yet.
var ErrNotReady = errors.New("mesh: not ready: istiod has not sent a whole configuration yet")

// An Explanation is the way of a connection through the configuration, step
// by step, as the data path would take it. The last step has OK false when
// the connection would be refused there.
type Explanation struct {
	Target  string `json:"target"`
	Steps   []Step `json:"steps"`
	Verdict string `json:"verdict"`
}

// A Step is one decision: the layer that takes it, what it chose and why.
type Step struct {
	Layer  string `json:"layer"`
	Choice string `json:"choice"`
	Detail string `json:"detail,omitempty"`
	OK     bool   `json:"ok"`
}

func (e *Explanation) ok(layer, choice, detail string) {
	e.Steps = append(e.Steps, Step{Layer: layer, Choice: choice, Detail: detail, OK: true})
}

// stop ends the explanation: nothing follows a step that refuses.
func (e *Explanation) stop(layer, choice, verdict string) *Explanation {
	e.Steps = append(e.Steps, Step{Layer: layer, Choice: choice, Detail: verdict})
	e.Verdict = verdict
	return e
}

// Explain walks a connection to host (a name or an address) and port. For an
// HTTP route it takes a GET of path, "/" when that is empty. It sends nothing.
func (m *Mesh) Explain(host string, port uint16, path string) (*Explanation, error) {
	s := m.catalog.Snapshot()
	if s == nil {
		return nil, ErrNotReady
	}
	if path == "" {
		path = "/"
	}
	e := &Explanation{Target: fmt.Sprintf("%s:%d", host, port)}
	addr, ok := m.explainName(e, s, host)
	if !ok {
		return e, nil
	}
	dst := netip.AddrPortFrom(addr, port)
	l := s.Listener(dst)
	if l == nil {
		return e.stop("listener", dst.String(), "no listener: the connection is reset"), nil
	}
	e.ok("listener", l.Config.Name, inspectors(l))
	chain := l.Match(dst, &catalog.Sniff{Transport: "raw_buffer", Protocols: []string{"http/1.1"}})
	if chain == nil {
		return e.stop("filter chain", "none", "no filter chain matches: the connection is closed"), nil
	}
	return m.explainChain(e, s, chain, dst, host, path), nil
}

// explainName resolves host as the resolver of the session would.
func (m *Mesh) explainName(e *Explanation, s *catalog.Snapshot, host string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(host); err == nil {
		owner := "not an address of the mesh"
		if s.Owns(a) {
			owner = "an address of the mesh"
		}
		e.ok("address", a.String(), owner)
		return a, true
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if a, ok := m.cfg.LocalNames[name]; ok {
		e.ok("name", a.String(), "a name of nasp-tun itself")
		return a, true
	}
	h, ok := s.Lookup(name)
	if !ok {
		e.stop("name", host, "the mesh does not know this name: it is looked up outside, and its address then takes the outbound policy")
		return netip.Addr{}, false
	}
	all := append(append([]netip.Addr(nil), h.V4...), h.V6...)
	if len(all) == 0 {
		e.stop("name", h.Name, "the mesh knows this name but gives no address for it from here")
		return netip.Addr{}, false
	}
	e.ok("name", all[0].String(), h.Name)
	return all[0], true
}

func inspectors(l *catalog.Listener) string {
	tls, http := l.Inspect()
	switch {
	case tls && http:
		return "the chain depends on the first bytes (TLS, HTTP)"
	case tls:
		return "the chain depends on the first bytes (TLS)"
	case http:
		return "the chain depends on the first bytes (HTTP)"
	}
	return "the chain depends on the address alone"
}

func (m *Mesh) explainChain(e *Explanation, s *catalog.Snapshot, c *resource.FilterChain, dst netip.AddrPort, host, path string) *Explanation {
	name := c.Name
	if name == "" {
		name = "(unnamed)" // as istiod leaves most
	}
	switch {
	case c.Refused != "":
		return e.stop("filter chain", name, "refused: "+c.Refused)
	case c.TCP != nil:
		e.ok("filter chain", name, "TCP")
		return m.explainClusters(e, s, c.TCP.Clusters, dst, upstream.Describe)
	}
	e.ok("filter chain", name, "HTTP")
	t := s.Routes(c.HTTP)
	if t == nil {
		return e.stop("route", c.HTTP.RouteName, "istiod has not sent this route configuration: 404")
	}
	vh, r := t.Match(&catalog.Request{
		Method: "GET", Host: host, Path: path, Scheme: "http", Dst: dst,
		Header: func(string) []string { return nil },
	})
	switch {
	case vh == nil:
		return e.stop("route", "none", fmt.Sprintf("no virtual host for %q: 404", host))
	case r == nil:
		return e.stop("route", vh.Name, fmt.Sprintf("no route of this virtual host for GET %s: 404", path))
	case r.Redirect != nil:
		return e.stop("route", vh.Name, fmt.Sprintf("a redirect: %d", r.Redirect.Status))
	case r.Direct != nil:
		return e.stop("route", vh.Name, fmt.Sprintf("answered by the route itself: %d", r.Direct.Status))
	}
	e.ok("route", strings.TrimSuffix(vh.Name+"/"+r.Name, "/"), routeDetail(r))
	return m.explainClusters(e, s, r.Action.Clusters, dst, func(cfg *resource.Cluster, ep *resource.Endpoint) resource.Transport {
		return upstream.DescribeHTTP(cfg, ep, c.HTTP.IstioALPN)
	})
}

func routeDetail(r *resource.Route) string {
	var d []string
	if t := r.Action.Timeout; t > 0 {
		d = append(d, "time-out "+t.String())
	}
	if p := r.Action.Retry; p != nil {
		d = append(d, fmt.Sprintf("%d more tries", p.Max))
	}
	for _, f := range r.Ignored {
		d = append(d, "ignored: "+f)
	}
	return strings.Join(d, ", ")
}

// describe tells how an endpoint is reached, by HTTP or by raw TCP.
type describe func(*resource.Cluster, *resource.Endpoint) resource.Transport

func (m *Mesh) explainClusters(e *Explanation, s *catalog.Snapshot, set []resource.WeightedCluster, dst netip.AddrPort, how describe) *Explanation {
	w := catalog.Choose(set, 0)
	if w == nil {
		return e.stop("cluster", "none", "the route names no cluster")
	}
	var split string
	if len(set) > 1 {
		parts := make([]string, len(set))
		for i := range set {
			parts[i] = fmt.Sprintf("%s %d", set[i].Name, set[i].Weight)
		}
		split = "one of " + strings.Join(parts, ", ")
	}
	c := s.Cluster(w.Name)
	if c == nil {
		return e.stop("cluster", w.Name, "istiod has not sent this cluster")
	}
	switch {
	case c.BlackHole():
		if m.cfg.OutsideAllow && !s.Owns(dst.Addr()) {
			e.ok("cluster", w.Name, "the mesh's outbound policy refuses it, --outside=allow passes it")
			e.Verdict = "passed through in clear to " + dst.String() + ", as --outside=allow says"
			return e
		}
		return e.stop("cluster", w.Name, "the mesh's outbound policy (REGISTRY_ONLY) refuses destinations that it does not know")
	case c.Passthrough():
		if s.Owns(dst.Addr()) {
			return e.stop("cluster", w.Name, "an address of the mesh without a route: refused, since passing it through would send clear text")
		}
		e.ok("cluster", w.Name, "the mesh does not know this destination")
		e.Verdict = "passed through in clear to " + dst.String()
		return e
	}
	e.ok("cluster", w.Name, split)
	return m.explainEndpoint(e, s, c, dst, how)
}

func (m *Mesh) explainEndpoint(e *Explanation, s *catalog.Snapshot, c *catalog.Cluster, dst netip.AddrPort, how describe) *Explanation {
	ep := &resource.Endpoint{Address: dst, Weight: 1}
	detail := "the address that was dialled"
	if c.Config.Discovery != resource.OriginalDst {
		healthy, total := c.LB.Endpoints().Total()
		h, err := c.LB.Pick(nil)
		if err != nil {
			return e.stop("endpoint", fmt.Sprintf("%d of %d healthy", healthy, total), "no endpoint to send to: "+err.Error())
		}
		ep, detail = h.Endpoint, fmt.Sprintf("%d of %d healthy", healthy, total)
	} else if s.HBONEOnly(dst.Addr()) {
		return e.stop("endpoint", dst.String(), "reached by HBONE only, which is not supported yet: refused")
	}
	e.ok("endpoint", ep.Key(), detail)
	d := how(c.Config, ep)
	switch d.Kind {
	case resource.Plain:
		if c.Config.Discovery == resource.OriginalDst && s.Strays(c.Config, dst.Addr()) {
			return e.stop("transport", d.Kind.String(), "the address belongs to another service: refused, since that may want mutual TLS")
		}
		e.ok("transport", d.Kind.String(), "istiod marks this endpoint as one without mutual TLS")
		e.Verdict = "sent in clear to " + ep.Key() + ", as the mesh's configuration says"
	case resource.IstioMTLS:
		e.ok("transport", d.Kind.String(), transportDetail(&d))
		e.Verdict = fmt.Sprintf("sent by mutual TLS to %s as %s", ep.Key(), m.principal())
	default:
		return e.stop("transport", d.Kind.String(), fmt.Sprintf("%s is not supported yet: refused, never sent in clear", d.Name))
	}
	return e
}

func transportDetail(t *resource.Transport) string {
	sans := make([]string, 0, len(t.SANs))
	for _, s := range t.SANs {
		switch {
		case s.Exact != "":
			sans = append(sans, s.Exact)
		case s.Prefix != "":
			sans = append(sans, s.Prefix+"*")
		default:
			sans = append(sans, "*"+s.Suffix)
		}
	}
	want := "any identity of the mesh"
	if len(sans) > 0 {
		want = strings.Join(sans, " or ")
	}
	return fmt.Sprintf("SNI %s; the peer must be %s; ALPN %s", t.SNI, want, strings.Join(t.ALPN, ","))
}
