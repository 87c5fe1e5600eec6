// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Host is a name of the mesh with its addresses.
type Host struct {
	Name   string // fully qualified, without the last dot
	V4, V6 []netip.Addr
}

// A node is what short names depend on.
type node struct{ namespace, domain string }

// newNode drops the namespace that istiod's DNS domains begin with.
func newNode(namespace, domain string) node {
	domain = strings.ToLower(strings.Trim(domain, "."))
	return node{namespace, strings.TrimPrefix(domain, namespace+".")}
}

// A nameIndex finds hosts by name.
type nameIndex struct {
	hosts     map[string]*Host
	wildcards map[string]*Host // by suffix, from the dot on
	// listed are the names of the control plane's own table, which nothing
	// that is only inferred may change.
	listed *resource.NameTable
}

func newNameIndex(t *resource.NameTable, n node) nameIndex {
	x := nameIndex{hosts: make(map[string]*Host, 4*len(t.Names)), listed: t}
	for name, entry := range t.Names {
		h := &Host{Name: name}
		h.add(entry.Addresses)
		x.set(name, h)
	}
	// Short forms last: a name of the table is never hidden by one.
	for name, entry := range t.Names {
		for _, short := range n.shortForms(entry) {
			if _, taken := t.Names[short]; !taken {
				x.set(short, x.hosts[name])
			}
		}
	}
	return x
}

// shortForms are the names by which a Kubernetes service is known beside its
// own, like those that Istio's agent makes: name (in its own namespace),
// name.namespace, name.namespace.svc.
func (n node) shortForms(e *resource.Name) []string {
	if e.Registry != "Kubernetes" || e.ShortName == "" || e.Namespace == "" {
		return nil
	}
	qualified := e.ShortName + "." + e.Namespace
	domain, ok := strings.CutPrefix(e.Host, qualified+".")
	if !ok || n.domain != "" && domain != n.domain {
		return nil // of another domain, where the same names mean others
	}
	first, _, _ := strings.Cut(domain, ".")
	forms := []string{qualified, qualified + "." + first}
	if e.Namespace == n.namespace {
		forms = append(forms, e.ShortName)
	}
	return forms
}

func (x *nameIndex) set(name string, h *Host) {
	if suffix, ok := strings.CutPrefix(name, "*"); ok {
		put(&x.wildcards, suffix, h)
		return
	}
	x.hosts[name] = h
}

// learn adds addresses to a name that the control plane's table does not have.
func (x *nameIndex) learn(name string, addrs ...netip.Addr) {
	h := x.hosts[name]
	if suffix, ok := strings.CutPrefix(name, "*"); ok {
		h = x.wildcards[suffix]
	}
	if h != nil {
		if _, listed := x.listed.Names[h.Name]; listed {
			return
		}
	} else {
		h = &Host{Name: name}
		x.set(name, h)
	}
	h.add(addrs)
}

func (h *Host) add(addrs []netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap()
		list := &h.V6
		if a.Is4() {
			list = &h.V4
		}
		if !slices.Contains(*list, a) {
			*list = append(*list, a)
		}
	}
}

// Lookup finds a host by a name in lower case without the last dot: its own,
// one of its short forms, or one that a wildcard covers. The answer is not to
// be changed. A host without addresses of a family exists nevertheless.
func (s *Snapshot) Lookup(host string) (*Host, bool) {
	if h, ok := s.names.hosts[host]; ok {
		return h, true
	}
	if len(s.names.wildcards) == 0 {
		return nil, false
	}
	for rest := host; ; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			return nil, false
		}
		if h, ok := s.names.wildcards[rest[dot:]]; ok {
			return h, true
		}
		rest = rest[dot+1:]
	}
}

// Names returns all names of the mesh, in no order, short forms and wildcards
// too.
func (s *Snapshot) Names() []string {
	names := make([]string, 0, len(s.names.hosts)+len(s.names.wildcards))
	for name := range s.names.hosts {
		names = append(names, name)
	}
	for suffix := range s.names.wildcards {
		names = append(names, "*"+suffix)
	}
	return names
}

// A wdsIndex is what WDS says, by address.
type wdsIndex struct {
	workloads map[netip.Addr]wdsWorkload
	services  map[netip.Addr][]string // host names
}

type wdsWorkload struct{ hbone, healthy bool }

// newWDSIndex joins the networks: an address that means a tunnel in one of
// them is taken for one, since a connection in clear would be the worse error.
func newWDSIndex(workloads map[string]*resource.Workload, services map[string]*resource.WDSService) wdsIndex {
	x := wdsIndex{
		workloads: make(map[netip.Addr]wdsWorkload, len(workloads)),
		services:  make(map[netip.Addr][]string, len(services)),
	}
	for _, w := range workloads {
		for _, a := range w.Addresses {
			a = a.Unmap()
			v := x.workloads[a]
			x.workloads[a] = wdsWorkload{hbone: v.hbone || w.HBONE, healthy: v.healthy || !w.Unhealthy}
		}
	}
	for _, svc := range services {
		for _, a := range svc.Addresses {
			a = a.Unmap()
			x.services[a] = append(x.services[a], svc.Hostname)
		}
	}
	return x
}
