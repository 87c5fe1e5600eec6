// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// An addressIndex tells the addresses of the mesh from all others.
type addressIndex struct {
	// clusters holds, by address, the clusters that traffic to it may reach.
	clusters map[netip.Addr][]*Cluster
	ranges   []netip.Prefix // of chains that match destination ranges
	// byHost are the clusters of a service, by its host name.
	byHost map[string][]*Cluster
}

// A join relates the addresses and names of a Snapshot to its clusters.
type join struct {
	s         *Snapshot
	names     nameIndex
	addresses addressIndex
}

func newJoin(s *Snapshot, n node) *join {
	j := &join{
		s:     s,
		names: newNameIndex(s.table, n),
		addresses: addressIndex{
			clusters: make(map[netip.Addr][]*Cluster, len(s.clusters)),
			byHost:   make(map[string][]*Cluster, len(s.clusters)),
		},
	}
	// In order, so that equal input gives equal answers.
	for _, name := range slices.Sorted(maps.Keys(s.clusters)) {
		cell := s.clusters[name]
		if host := cell.Config.Istio.Service().Host; host != "" {
			j.addresses.byHost[host] = append(j.addresses.byHost[host], cell)
		}
	}
	for host, name := range s.table.Names {
		for _, a := range name.Addresses {
			j.claim(a, j.addresses.byHost[host]...)
		}
	}
	for _, l := range s.listeners.all {
		j.listener(l)
	}
	for _, name := range slices.Sorted(maps.Keys(s.tables)) {
		if t := s.tables[name]; t != nil {
			j.hosts(t)
		}
	}
	return j
}

// claim makes an address one of the mesh's, with the clusters behind it. It
// reports false for one that cannot be: http_proxy, for one, listens on
// loopback, which is the host's own.
func (j *join) claim(a netip.Addr, cells ...*Cluster) bool {
	a = a.Unmap()
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() {
		return false
	}
	have := j.addresses.clusters[a]
	for _, cell := range cells {
		if !slices.Contains(have, cell) {
			have = append(have, cell)
		}
	}
	j.addresses.clusters[a] = have
	return true
}

// listener claims the addresses of a listener.
func (j *join) listener(l *Listener) {
	if l.Config.Virtual {
		return
	}
	j.addresses.ranges = append(j.addresses.ranges, l.prefixes()...)
	var cells []*Cluster
	for _, a := range l.Config.Addresses {
		if a.Addr().IsUnspecified() {
			continue
		}
		if cells == nil {
			cells = j.behind(l)
		}
		if host := soleService(cells); j.claim(a.Addr(), cells...) && host != "" {
			j.names.learn(host, a.Addr())
		}
	}
}

// behind lists the clusters that a listener leads to.
func (j *join) behind(l *Listener) []*Cluster {
	var cells []*Cluster
	add := func(list []resource.WeightedCluster) {
		for _, w := range list {
			if cell := j.s.clusters[w.Name]; cell != nil && !policyCluster(w.Name) {
				cells = append(cells, cell)
			}
		}
	}
	for chain := range l.chains() {
		switch {
		case chain.TCP != nil:
			add(chain.TCP.Clusters)
		case chain.HTTP != nil:
			t := j.s.Routes(chain.HTTP)
			if t == nil {
				continue
			}
			for _, vh := range t.Config.VirtualHosts {
				add(routed(vh))
			}
		}
	}
	return cells
}

// routed lists the clusters that the routes of a host lead to.
func routed(vh *resource.VirtualHost) []resource.WeightedCluster {
	if len(vh.Routes) == 1 && vh.Routes[0].Action != nil {
		return vh.Routes[0].Action.Clusters
	}
	var all []resource.WeightedCluster
	for _, r := range vh.Routes {
		if r.Action != nil {
			all = append(all, r.Action.Clusters...)
		}
	}
	return all
}

// soleService returns the one host that all the clusters belong to, or "".
func soleService(cells []*Cluster) string {
	host := ""
	for _, cell := range cells {
		h := cell.Config.Istio.Service().Host
		if host != "" && h != host {
			return ""
		}
		host = h
	}
	return host
}

// hosts claims the virtual addresses that hosts list among their domains, and
// gives them to the names listed beside them.
func (j *join) hosts(t *RouteTable) {
	for _, vh := range t.Config.VirtualHosts {
		var addrs []netip.Addr
		for _, domain := range vh.Domains {
			if a, ok := parseVIP(domain); ok {
				addrs = append(addrs, a.Addr())
			}
		}
		if len(addrs) == 0 {
			continue
		}
		var cells []*Cluster
		for _, w := range routed(vh) {
			if cell := j.s.clusters[w.Name]; cell != nil && !policyCluster(w.Name) {
				cells = append(cells, cell)
			}
		}
		for _, a := range addrs {
			j.claim(a, cells...)
		}
		for _, domain := range vh.Domains {
			if _, isAddr := parseVIP(domain); isAddr || domain == "*" || strings.Contains(domain, ":") {
				continue
			}
			j.names.learn(strings.TrimSuffix(domain, "."), addrs...)
		}
	}
}

// Owns reports whether an address is one of the mesh: a virtual address, a
// workload that is named by a listener or by WDS, or part of a range that a
// listener matches.
func (s *Snapshot) Owns(a netip.Addr) bool {
	a = a.Unmap()
	if _, ok := s.addresses.clusters[a]; ok {
		return true
	}
	if _, ok := s.wds.workloads[a]; ok {
		return true
	}
	if _, ok := s.wds.services[a]; ok {
		return true
	}
	for _, p := range s.addresses.ranges {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Strays reports whether an address belongs to services of the mesh, and none of
// them is the cluster's. A cluster of original destinations dials whatever the
// client dialled: a Host that is not the address's own, or a listener of a
// whole port, leads other services' addresses to it, for which its word that
// clear text will do does not stand.
func (s *Snapshot) Strays(c *resource.Cluster, a netip.Addr) bool {
	have, owned := s.addresses.clusters[a.Unmap()]
	host := c.Istio.Service().Host
	return owned && !slices.ContainsFunc(have, func(o *Cluster) bool {
		return o.Config.Name == c.Name || host != "" && o.Config.Istio.Service().Host == host
	})
}

// Echo reports whether something answers at an address: a healthy endpoint of
// a service that has it, or a healthy workload.
func (s *Snapshot) Echo(a netip.Addr) bool {
	a = a.Unmap()
	for _, cell := range s.addresses.clusters[a] {
		if cell.LB.HasHealthy() {
			return true
		}
	}
	if w, ok := s.wds.workloads[a]; ok {
		return w.healthy
	}
	for _, host := range s.wds.services[a] {
		for _, cell := range s.addresses.byHost[host] {
			if cell.LB.HasHealthy() {
				return true
			}
		}
	}
	return false
}

// HBONEOnly reports whether WDS says that the workload at an address takes
// connections from a tunnel only. Where it does, it is right even if listener
// and cluster ask for clear text, as they do for headless services of an
// ambient mesh.
func (s *Snapshot) HBONEOnly(a netip.Addr) bool { return s.wds.workloads[a.Unmap()].hbone }
