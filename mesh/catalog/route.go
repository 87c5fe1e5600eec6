// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A RouteTable is a route configuration with its hosts arranged for look-up.
type RouteTable struct {
	Config   *resource.RouteConfiguration
	exact    map[string]*resource.VirtualHost
	suffixes wildcards // of "*.example.com", from the star on
	prefixes wildcards // of "example.*", up to the star
	any      *resource.VirtualHost
	// outside: the host for everything is the mesh's policy for what it does
	// not know, not a service.
	outside bool
	// Virtual addresses that hosts list among their domains.
	vips     map[netip.Addr]*resource.VirtualHost
	vipPorts map[netip.AddrPort]*resource.VirtualHost
}

// wildcards finds the longest of many fixed parts.
type wildcards struct {
	lengths []int // that occur, longest first
	hosts   map[string]*resource.VirtualHost
}

// A Request is what routes look at.
type Request struct {
	Method, Host, Scheme string
	Path                 string // with the query
	// Header returns the values of a header, whose name it gets in the form
	// of net/http.CanonicalHeaderKey. It may be nil.
	Header func(name string) []string
	GRPC   bool
	// Dst is where the connection went, for hosts that the table does not
	// know by name.
	Dst netip.AddrPort
	// Rand decides routes that take a fraction of the requests.
	Rand uint64
}

func newRouteTable(cfg *resource.RouteConfiguration) *RouteTable {
	t := &RouteTable{Config: cfg, exact: make(map[string]*resource.VirtualHost)}
	for _, vh := range cfg.VirtualHosts {
		for _, domain := range vh.Domains {
			t.add(domain, vh)
		}
	}
	t.suffixes.sort()
	t.prefixes.sort()
	t.outside = t.any != nil && outside(t.any)
	return t
}

// add enters a host under one of its domains; the first to claim it has it.
func (t *RouteTable) add(domain string, vh *resource.VirtualHost) {
	switch {
	case domain == "*":
		if t.any == nil {
			t.any = vh
		}
	case strings.HasPrefix(domain, "*"):
		t.suffixes.add(domain[1:], vh)
	case strings.HasSuffix(domain, "*"):
		t.prefixes.add(domain[:len(domain)-1], vh)
	default:
		if _, taken := t.exact[domain]; taken {
			return
		}
		t.exact[domain] = vh
		if addr, ok := parseVIP(domain); ok && addr.Port() == 0 {
			put(&t.vips, addr.Addr(), vh)
		} else if ok {
			put(&t.vipPorts, addr, vh)
		}
	}
}

// parseVIP reads a domain that is an address, with or without a port: 0 is
// none. IPv6 comes in brackets.
func parseVIP(domain string) (netip.AddrPort, bool) {
	if domain == "" {
		return netip.AddrPort{}, false
	}
	if c := domain[len(domain)-1]; c != ']' && (c < '0' || c > '9') && !strings.Contains(domain, ":") {
		return netip.AddrPort{}, false // most domains are names
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	if a, err := netip.ParseAddr(bare); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), true
	}
	ap, err := netip.ParseAddrPort(domain)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), err == nil && ap.Port() != 0
}

func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

// outside reports whether every route of a host leads out of what the mesh
// knows: to the passthrough or the black hole cluster, or to an error.
func outside(vh *resource.VirtualHost) bool {
	if vh.Name == "allow_any" || vh.Name == "block_all" {
		return true // istiod's names for the two policies
	}
	for _, r := range vh.Routes {
		if r.Action == nil {
			return false
		}
		for _, c := range r.Action.Clusters {
			if !policyCluster(c.Name) {
				return false
			}
		}
	}
	return true
}

// Match returns the virtual host of a request and the first of its routes
// that fits. Without a host both are nil; without a route the second is:
// either way the answer is 404.
//
// A Host that the table does not know goes to the host of the virtual address
// that the client dialled, if that is one of the mesh. A sidecar would pass it
// through to that address; from outside of the cluster it cannot be reached,
// and the mesh does know which service it belongs to.
func (t *RouteTable) Match(r *Request) (*resource.VirtualHost, *resource.Route) {
	vh := t.host(r)
	if vh == nil {
		return nil, nil
	}
	path, query := splitPath(r.Path)
	for _, route := range vh.Routes {
		if matches(&route.Match, r, path, query) {
			return vh, route
		}
	}
	return vh, nil
}

func (t *RouteTable) host(r *Request) *resource.VirtualHost {
	vh := t.byName(normalHost(r.Host, t.Config.IgnorePort))
	if vh != nil && !(vh == t.any && t.outside) {
		return vh
	}
	dst := netip.AddrPortFrom(r.Dst.Addr().Unmap(), r.Dst.Port())
	if known := t.vipPorts[dst]; known != nil {
		return known
	}
	if known := t.vips[dst.Addr()]; known != nil {
		return known
	}
	return vh
}

// byName searches in Envoy's order: the exact name, the longest suffix
// wildcard, the longest prefix wildcard, then "*".
func (t *RouteTable) byName(host string) *resource.VirtualHost {
	if vh := t.exact[host]; vh != nil {
		return vh
	}
	if vh := t.suffixes.find(host, func(n int) string { return host[len(host)-n:] }); vh != nil {
		return vh
	}
	if vh := t.prefixes.find(host, func(n int) string { return host[:n] }); vh != nil {
		return vh
	}
	return t.any
}

func (w *wildcards) add(part string, vh *resource.VirtualHost) {
	if _, taken := w.hosts[part]; taken {
		return
	}
	put(&w.hosts, part, vh)
	if !slices.Contains(w.lengths, len(part)) {
		w.lengths = append(w.lengths, len(part))
	}
}

func (w *wildcards) sort() { slices.SortFunc(w.lengths, func(a, b int) int { return b - a }) }

// find returns the host of the longest part that part(n) yields for its
// length n. The star stands for at least one character.
func (w *wildcards) find(host string, part func(int) string) *resource.VirtualHost {
	for _, n := range w.lengths {
		if n >= len(host) {
			continue
		}
		if vh := w.hosts[part(n)]; vh != nil {
			return vh
		}
	}
	return nil
}

// normalHost lower-cases a host and, if asked, takes off its port.
func normalHost(host string, stripPort bool) string {
	if stripPort {
		host = withoutPort(host)
	}
	return strings.ToLower(host) // does not allocate when nothing changes
}

// withoutPort cuts a numeric port. The colons of a bare IPv6 address are none.
func withoutPort(host string) string {
	colon := strings.LastIndexByte(host, ':')
	if colon < 0 || strings.LastIndexByte(host, ']') > colon {
		return host
	}
	if strings.IndexByte(host, ':') != colon && host[0] != '[' {
		return host
	}
	for _, c := range []byte(host[colon+1:]) {
		if c < '0' || c > '9' {
			return host
		}
	}
	return host[:colon]
}

// splitPath cuts the query and the fragment off a path.
func splitPath(full string) (path, query string) {
	if i := strings.IndexByte(full, '#'); i >= 0 {
		full = full[:i]
	}
	path, query, _ = strings.Cut(full, "?")
	return path, query
}

// Choose draws one of the clusters by weight, nil if there are none.
func Choose(clusters []resource.WeightedCluster, rand uint64) *resource.WeightedCluster {
	var total uint64
	for i := range clusters {
		total += uint64(clusters[i].Weight)
	}
	if len(clusters) == 0 {
		return nil
	}
	if len(clusters) == 1 || total == 0 {
		return &clusters[0]
	}
	at := rand % total
	for i := range clusters {
		w := uint64(clusters[i].Weight)
		if at < w {
			return &clusters[i]
		}
		at -= w
	}
	return nil // not reached: at began below the total
}
