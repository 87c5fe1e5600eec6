// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// The clusters by which istiod expresses the outbound policy of the mesh.
const (
	// PassthroughCluster dials what the client dialled, in clear.
	PassthroughCluster = "PassthroughCluster"
	// BlackHoleCluster has no endpoint: what is routed there is refused.
	BlackHoleCluster = "BlackHoleCluster"
	// DynamicDNSCluster dials what the Host header names (ALLOW_ANY_DYNAMIC_DNS).
	DynamicDNSCluster = "AllowAnyDynamicDNSCluster"
)

// Passthrough reports whether the cluster stands for destinations that the
// mesh does not know but lets pass.
func (c *Cluster) Passthrough() bool {
	return c.Config.Name == PassthroughCluster && c.Config.Discovery == resource.OriginalDst
}

// BlackHole reports whether the cluster stands for destinations that the mesh
// does not know and refuses.
func (c *Cluster) BlackHole() bool { return c.Config.Name == BlackHoleCluster }

// policyCluster reports whether a name is that of no service, but of the
// policy for what the mesh does not know.
func policyCluster(name string) bool {
	return name == PassthroughCluster || name == BlackHoleCluster || name == DynamicDNSCluster
}

// A Snapshot is a consistent view of the mesh. It is immutable but for the
// endpoints in its clusters, and its look-ups do not allocate.
type Snapshot struct {
	clusters  map[string]*Cluster
	listeners listenerIndex
	tables    map[string]*RouteTable
	inline    map[*resource.RouteConfiguration]*RouteTable
	names     nameIndex
	addresses addressIndex
	wds       wdsIndex
	table     *resource.NameTable
}

// build makes the next Snapshot, reusing of the last one what did not change.
func (c *Catalog) build() *Snapshot {
	s := &Snapshot{table: c.names}
	last := c.snapshot.Load()
	if last == nil {
		last = &Snapshot{}
		c.dirty = kinds{true, true, true, true, true}
	}
	s.clusters, s.tables = last.clusters, last.tables
	if c.dirty.clusters {
		s.clusters = maps.Clone(c.clusters)
	}
	if c.dirty.routes || c.dirty.listeners {
		s.tables = maps.Clone(c.tables)
	}
	s.listeners, s.inline = last.listeners, last.inline
	if c.dirty.listeners {
		s.listeners = newListenerIndex(c.listeners)
		s.inline = s.listeners.inlineTables(last.inline)
	}
	s.wds = last.wds
	if c.dirty.addresses {
		s.wds = newWDSIndex(c.workloads, c.services)
	}
	s.names, s.addresses = last.names, last.addresses
	if c.dirty.clusters || c.dirty.listeners || c.dirty.routes || c.dirty.names {
		j := newJoin(s, c.node)
		s.names, s.addresses = j.names, j.addresses
	}
	return s
}

// Cluster returns the cell of a cluster, nil if there is none of that name.
func (s *Snapshot) Cluster(name string) *Cluster { return s.clusters[name] }

// Clusters returns the names of all clusters, sorted.
func (s *Snapshot) Clusters() []string { return slices.Sorted(maps.Keys(s.clusters)) }

// Listener returns the listener that takes a connection to dst, nil if there
// is none: the one of exactly that address, else the one of the port, else
// the catch-all.
func (s *Snapshot) Listener(dst netip.AddrPort) *Listener { return s.listeners.find(dst) }

// Routes returns the route table of a connection manager, nil if the control
// plane has none of its name.
func (s *Snapshot) Routes(m *resource.HTTPManager) *RouteTable {
	if m.Routes == nil {
		return s.tables[m.RouteName]
	}
	if t := s.inline[m.Routes]; t != nil {
		return t
	}
	return newRouteTable(m.Routes) // a manager that is not of this Snapshot
}

// A listenerIndex finds listeners by address.
type listenerIndex struct {
	exact   map[netip.AddrPort]*Listener
	v4, v6  map[uint16]*Listener // wildcard addresses
	virtual *Listener            // of v4, or the only one
	virt6   *Listener
	all     []*Listener // outbound, by name
}

func newListenerIndex(set map[string]*Listener) listenerIndex {
	x := listenerIndex{
		exact: make(map[netip.AddrPort]*Listener, len(set)),
		v4:    make(map[uint16]*Listener),
		v6:    make(map[uint16]*Listener),
	}
	// By name, so that of two listeners with one address it is always the
	// same one that wins.
	for _, name := range slices.Sorted(maps.Keys(set)) {
		l := set[name]
		if !l.Config.Outbound {
			continue
		}
		x.all = append(x.all, l)
		for _, a := range l.Config.Addresses {
			x.add(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), l)
		}
	}
	return x
}

func (x *listenerIndex) add(a netip.AddrPort, l *Listener) {
	switch {
	case l.Config.Virtual && a.Addr().Is4():
		x.virtual = l
	case l.Config.Virtual:
		x.virt6 = l
	case !a.Addr().IsUnspecified():
		x.exact[a] = l
	case a.Addr().Is4():
		x.v4[a.Port()] = l
	default:
		x.v6[a.Port()] = l
	}
}

func (x *listenerIndex) find(dst netip.AddrPort) *Listener {
	addr := dst.Addr().Unmap()
	if l := x.exact[netip.AddrPortFrom(addr, dst.Port())]; l != nil {
		return l
	}
	ports, virtual, other := x.v4, x.virtual, x.virt6
	if !addr.Is4() {
		ports, virtual, other = x.v6, x.virt6, x.virtual
	}
	if l := ports[dst.Port()]; l != nil {
		return l
	}
	if virtual == nil {
		// The policy for what the mesh does not know is not one of a family.
		return other
	}
	return virtual
}

// inlineTables compiles the routes that listeners hold themselves.
func (x *listenerIndex) inlineTables(old map[*resource.RouteConfiguration]*RouteTable) map[*resource.RouteConfiguration]*RouteTable {
	tables := make(map[*resource.RouteConfiguration]*RouteTable)
	for _, l := range x.all {
		for m := range l.managers() {
			if m.Routes == nil {
				continue
			}
			t := old[m.Routes]
			if t == nil {
				t = newRouteTable(m.Routes)
			}
			tables[m.Routes] = t
		}
	}
	return tables
}

// sameEndpoints compares the inline endpoints of two versions of a cluster.
func sameEndpoints(a, b *resource.Endpoints) bool { return a == b || reflect.DeepEqual(a, b) }
