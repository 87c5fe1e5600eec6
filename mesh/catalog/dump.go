// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"maps"
	"slices"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Dump is the whole configuration in force, as it was understood, for
// whoever looks for an error in it. All lists are sorted by name.
type Dump struct {
	Listeners []*resource.Listener           `json:"listeners"`
	Routes    []*resource.RouteConfiguration `json:"routes"`
	Clusters  []ClusterDump                  `json:"clusters"`
	Names     *resource.NameTable            `json:"names"`
}

// A ClusterDump is a cluster with its endpoints of the moment.
type ClusterDump struct {
	Config    *resource.Cluster   `json:"config"`
	Endpoints *resource.Endpoints `json:"endpoints,omitempty"`
}

// Dump returns the configuration. What it points to must not be changed.
func (s *Snapshot) Dump() Dump {
	d := Dump{Names: s.table}
	for _, l := range s.listeners.all {
		d.Listeners = append(d.Listeners, l.Config)
	}
	for _, name := range slices.Sorted(maps.Keys(s.tables)) {
		if t := s.tables[name]; t != nil {
			d.Routes = append(d.Routes, t.Config)
		}
	}
	for _, name := range s.Clusters() {
		c := s.clusters[name]
		d.Clusters = append(d.Clusters, ClusterDump{Config: c.Config, Endpoints: c.LB.Endpoints()})
	}
	return d
}
