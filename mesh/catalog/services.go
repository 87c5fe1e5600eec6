// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Service is one service of the mesh, for people to look at.
type Service struct {
	Name, Namespace string
	Addresses       []netip.Addr
	Ports           []Port
}

// A Port is one port of a Service.
type Port struct {
	Number   uint16
	Protocol string // "http" or "tcp"
	Cluster  string
	// MTLS is how its endpoints are reached: "mTLS", "plaintext", "HBONE",
	// "unsupported", "mixed", or "-" without endpoints.
	MTLS           string
	Healthy, Total int
}

// Services lists what can be reached, sorted by name and port. It walks all
// clusters: it is for people, not for the data path.
func (s *Snapshot) Services() []Service {
	http := s.httpClusters()
	byName := make(map[string]*Service)
	for name, cell := range s.clusters {
		host, number, subset, ok := splitName(name)
		if !ok || subset != "" {
			continue
		}
		ref := cell.Config.Istio.Service()
		svc := byName[host]
		if svc == nil {
			svc = &Service{Name: host, Namespace: ref.Namespace, Addresses: s.addressesOf(host)}
			byName[host] = svc
		}
		port := Port{Number: number, Protocol: "tcp", Cluster: name, MTLS: security(cell)}
		if http[name] {
			port.Protocol = "http"
		}
		port.Healthy, port.Total = cell.LB.Endpoints().Total()
		svc.Ports = append(svc.Ports, port)
	}
	list := make([]Service, 0, len(byName))
	for _, svc := range byName {
		slices.SortFunc(svc.Ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
		list = append(list, *svc)
	}
	slices.SortFunc(list, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// splitName reads istiod's names of outbound clusters:
// outbound|PORT|SUBSET|HOST.
func splitName(name string) (host string, port uint16, subset string, ok bool) {
	parts := strings.SplitN(name, "|", 4)
	if len(parts) != 4 || parts[0] != "outbound" {
		return "", 0, "", false
	}
	n, err := strconv.ParseUint(parts[1], 10, 16)
	return parts[3], uint16(n), parts[2], err == nil
}

func (s *Snapshot) addressesOf(host string) []netip.Addr {
	h, ok := s.Lookup(host)
	if !ok {
		return nil
	}
	return slices.SortedFunc(slices.Values(slices.Concat(h.V4, h.V6)), netip.Addr.Compare)
}

// httpClusters are those that some connection manager routes to.
func (s *Snapshot) httpClusters() map[string]bool {
	set := make(map[string]bool)
	for _, l := range s.listeners.all {
		for m := range l.managers() {
			t := s.Routes(m)
			if t == nil {
				continue
			}
			for _, vh := range t.Config.VirtualHosts {
				for _, w := range routed(vh) {
					set[w.Name] = true
				}
			}
		}
	}
	return set
}

// security sums up the transports of the endpoints of a cluster.
func security(cell *Cluster) string {
	kind := "-"
	if cell.Config.Discovery == resource.OriginalDst {
		return cell.Config.TransportFor(&resource.Endpoint{}).Kind.String()
	}
	e := cell.LB.Endpoints()
	if e == nil {
		return kind
	}
	for _, l := range e.Localities {
		for _, ep := range l.Endpoints {
			k := cell.Config.TransportFor(ep).Kind.String()
			if kind != "-" && kind != k {
				return "mixed"
			}
			kind = k
		}
	}
	return kind
}

// Ignored counts, by name, the features that resources ask for and that have
// no effect here. Like Services it walks everything.
func (s *Snapshot) Ignored() map[string]int {
	count := make(map[string]int)
	add := func(names []string) {
		for _, n := range names {
			count[n]++
		}
	}
	add(s.table.Ignored)
	for _, cell := range s.clusters {
		add(cell.Config.Ignored)
		if e := cell.LB.Endpoints(); e != nil {
			add(e.Ignored)
		}
	}
	for _, l := range s.listeners.all {
		add(l.Config.Ignored)
		for chain := range l.chains() {
			add(chain.Match.Unsupported)
		}
	}
	for _, tables := range []iter.Seq[*RouteTable]{maps.Values(s.tables), maps.Values(s.inline)} {
		for t := range tables {
			if t == nil {
				continue
			}
			add(t.Config.Ignored)
			for _, vh := range t.Config.VirtualHosts {
				for _, r := range vh.Routes {
					add(r.Ignored)
					add(r.Match.Unsupported)
				}
			}
		}
	}
	return count
}
