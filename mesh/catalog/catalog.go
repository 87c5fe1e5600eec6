// SPDX-License-Identifier: Apache-2.0

// Package catalog answers the question that the data path asks of the mesh:
// where does a connection to this address go, and what becomes of it there?
//
// The answer comes from a [Snapshot], an immutable view joined from the
// clusters, listeners, routes and names of the control plane:
//
//	address -> Listener -> filter chain -> RouteTable -> cluster cell
//
// A [Catalog] has one writer, the loop that reads the control plane. It
// collects resources with the Set methods and puts the next Snapshot in place
// with [Catalog.Publish], in one step. Readers never block and never see half
// an update; a connection may keep the Snapshot that it started with.
//
// # What a change costs
//
// Resources are compiled when they come in (the chains of a listener, the
// hosts of a route table), so that a new Snapshot is made of what is there
// already, and only its indexes are built again. Endpoints, which change most
// often, are not part of a Snapshot at all: they live in the cell of their
// cluster, behind an atomic pointer of their own, which is shared by all
// Snapshots. [Catalog.SetEndpoints] therefore takes effect at once and costs
// the same in a mesh of ten services and of ten thousand.
//
// # What is complete
//
// The first Snapshot waits until clusters, listeners and names have been
// seen, and endpoints and routes for each name that those ask for: half a
// configuration would send traffic past the mesh. Later ones wait likewise,
// and the earlier one stays in force meanwhile, so that no route points to a
// cluster whose endpoints are still on their way.
//
// The package does no I/O and knows no protobuf; package resource translates.
package catalog

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Catalog collects resources and publishes Snapshots of them. The Set
// methods, Publish and the lists of names belong to one goroutine, the
// writer; Snapshot and Ready are for everybody.
type Catalog struct {
	snapshot atomic.Pointer[Snapshot]
	ready    chan struct{} // closed by the first Publish that publishes

	// Owned by the writer.
	node        node
	clusters    map[string]*Cluster
	assignments map[string]*assignment // by EDS name
	unanswered  int                    // assignments that were never seen
	orphans     []string               // EDS names to forget, within one update
	listeners   map[string]*Listener
	tables      map[string]*RouteTable // nil: answered, but with nothing
	names       *resource.NameTable
	workloads   map[string]*resource.Workload
	services    map[string]*resource.WDSService
	seen, dirty kinds
}

// kinds is a set of resource types.
type kinds struct{ clusters, listeners, routes, names, addresses bool }

// A Cluster is the cell of a cluster: its configuration of the moment, and
// the balancer that outlives it.
type Cluster struct {
	Config *resource.Cluster
	LB     *balance.Cluster
}

// An assignment is the endpoints of one EDS name and the clusters that use it.
type assignment struct {
	clusters  []string
	endpoints *resource.Endpoints
	answered  bool
}

// New returns an empty Catalog.
func New() *Catalog {
	return &Catalog{
		ready:       make(chan struct{}),
		clusters:    make(map[string]*Cluster),
		assignments: make(map[string]*assignment),
		listeners:   make(map[string]*Listener),
		tables:      make(map[string]*RouteTable),
		names:       &resource.NameTable{},
		workloads:   make(map[string]*resource.Workload),
		services:    make(map[string]*resource.WDSService),
	}
}

// SetNode tells the namespace of this node and its DNS domain, such as
// "external.svc.cluster.local": a bare service name is one of that namespace,
// and short names exist for services of that domain only. Without it there
// are no bare names, and any domain has short names.
func (c *Catalog) SetNode(namespace, domain string) {
	c.node = newNode(namespace, domain)
	c.dirty.names = true
}

// SetClusters adds or replaces clusters and removes others.
func (c *Catalog) SetClusters(set []*resource.Cluster, removed []string) {
	c.seen.clusters, c.dirty.clusters = true, true
	for _, name := range removed {
		if cell := c.clusters[name]; cell != nil {
			c.leave(cell.Config)
			delete(c.clusters, name)
		}
	}
	for _, cfg := range set {
		cell := c.clusters[cfg.Name]
		if cell == nil {
			c.clusters[cfg.Name] = &Cluster{Config: cfg, LB: balance.New(cfg)}
			c.join(cfg)
			continue
		}
		c.clusters[cfg.Name] = &Cluster{Config: cfg, LB: cell.LB}
		cell.LB.Configure(cfg)
		if cfg.Discovery != cell.Config.Discovery || cfg.EDSName != cell.Config.EDSName {
			c.leave(cell.Config)
			c.join(cfg)
		}
		if cfg.Discovery != resource.EDS && !sameEndpoints(cfg.Endpoints, cell.Config.Endpoints) {
			cell.LB.SetEndpoints(cfg.Endpoints)
		}
	}
	c.forget()
}

// join lists a cluster under its EDS name.
func (c *Catalog) join(cfg *resource.Cluster) {
	if cfg.Discovery != resource.EDS {
		return
	}
	a := c.assignments[cfg.EDSName]
	if a == nil {
		a = &assignment{}
		c.assignments[cfg.EDSName] = a
		c.unanswered++
	}
	a.clusters = append(a.clusters, cfg.Name)
	if a.answered {
		c.clusters[cfg.Name].LB.SetEndpoints(a.endpoints)
	}
}

// leave undoes join.
func (c *Catalog) leave(cfg *resource.Cluster) {
	if cfg.Discovery != resource.EDS {
		return
	}
	a := c.assignments[cfg.EDSName]
	a.clusters = slices.DeleteFunc(a.clusters, func(n string) bool { return n == cfg.Name })
	if len(a.clusters) == 0 {
		c.orphans = append(c.orphans, cfg.EDSName)
	}
}

// forget drops the endpoints that no cluster uses after an update: the control
// plane sends them again when they are asked for again. It comes last, since
// one update may take a name from one cluster and give it to another, and is
// then not asked anew.
func (c *Catalog) forget() {
	for _, name := range c.orphans {
		a := c.assignments[name]
		if a == nil || len(a.clusters) > 0 {
			continue
		}
		if !a.answered {
			c.unanswered--
		}
		delete(c.assignments, name)
	}
	c.orphans = c.orphans[:0]
}

// SetEndpoints replaces the endpoints of the clusters that use them, at once
// and without a Publish. Those in removed have no endpoints any more. Where
// they are the last that a Snapshot waits for, it is published.
func (c *Catalog) SetEndpoints(set []*resource.Endpoints, removed []string) {
	for _, name := range removed {
		c.assign(name, nil)
	}
	for _, e := range set {
		c.assign(e.Name, e)
	}
	c.proceed()
}

// proceed publishes what waited for endpoints alone. The first Snapshot is
// the caller's to publish.
func (c *Catalog) proceed() {
	if c.unanswered == 0 && c.snapshot.Load() != nil {
		c.Publish()
	}
}

func (c *Catalog) assign(name string, e *resource.Endpoints) {
	a := c.assignments[name]
	if a == nil {
		return // a late answer for a cluster that is gone
	}
	c.answer(a)
	a.endpoints = e
	for _, cluster := range a.clusters {
		c.clusters[cluster].LB.SetEndpoints(e)
	}
}

func (c *Catalog) answer(a *assignment) {
	if !a.answered {
		a.answered = true
		c.unanswered--
	}
}

// SetListeners adds or replaces listeners and removes others.
func (c *Catalog) SetListeners(set []*resource.Listener, removed []string) {
	c.seen.listeners, c.dirty.listeners = true, true
	for _, name := range removed {
		delete(c.listeners, name)
	}
	for _, cfg := range set {
		c.listeners[cfg.Name] = newListener(cfg)
	}
}

// SetRoutes adds or replaces route configurations; those in removed match
// nothing any more.
func (c *Catalog) SetRoutes(set []*resource.RouteConfiguration, removed []string) {
	c.dirty.routes = true
	for _, name := range removed {
		c.tables[name] = nil
	}
	for _, cfg := range set {
		c.tables[cfg.Name] = newRouteTable(cfg)
	}
}

// SetNames replaces the table of names.
func (c *Catalog) SetNames(t *resource.NameTable) {
	c.seen.names, c.dirty.names = true, true
	c.names = t
}

// SetAddresses adds or replaces what WDS says of addresses. Removed names are
// those of workloads (UID) and of services (namespace/hostname).
func (c *Catalog) SetAddresses(w []*resource.Workload, s []*resource.WDSService, removed []string) {
	c.dirty.addresses = true
	for _, name := range removed {
		delete(c.workloads, name)
		delete(c.services, name)
	}
	for _, v := range w {
		c.workloads[v.UID] = v
	}
	for _, v := range s {
		c.services[v.Namespace+"/"+v.Hostname] = v
	}
}

// Reject says that the control plane answered for these EDS and RDS names,
// but that the answers could not be decoded. What was known of a name stays;
// a name that was never known counts as seen, with nothing in it, so that one
// bad resource does not hold back all the others.
func (c *Catalog) Reject(eds, rds []string) {
	for _, name := range eds {
		if a := c.assignments[name]; a != nil {
			c.answer(a)
		}
	}
	for _, name := range rds {
		if _, known := c.tables[name]; !known {
			c.tables[name] = nil
			c.dirty.routes = true
		}
	}
	c.proceed()
}

// EDSNames lists the endpoints wanted now, sorted.
func (c *Catalog) EDSNames() []string { return slices.Sorted(maps.Keys(c.assignments)) }

// RDSNames lists the route configurations wanted now, sorted.
func (c *Catalog) RDSNames() []string { return slices.Sorted(maps.Keys(c.wantedRoutes())) }

func (c *Catalog) wantedRoutes() map[string]struct{} {
	want := make(map[string]struct{})
	for _, l := range c.listeners {
		for m := range l.managers() {
			if m.Routes == nil {
				want[m.RouteName] = struct{}{}
			}
		}
	}
	return want
}

// Publish puts the next Snapshot in place, if anything changed and all that
// it refers to is there. Otherwise it does nothing: the call belongs after
// each update.
func (c *Catalog) Publish() {
	if c.dirty == (kinds{}) || !c.seen.clusters || !c.seen.listeners || !c.seen.names || c.unanswered > 0 {
		return
	}
	if c.dirty.listeners || c.dirty.routes {
		want := c.wantedRoutes()
		for name := range want {
			if _, known := c.tables[name]; !known {
				return
			}
		}
		maps.DeleteFunc(c.tables, func(name string, _ *RouteTable) bool {
			_, wanted := want[name]
			return !wanted
		})
	}
	first := c.snapshot.Load() == nil
	c.snapshot.Store(c.build())
	c.dirty = kinds{}
	if first {
		close(c.ready)
	}
}

// Pending lists what the next Snapshot waits for, for messages: at most a few
// names of each type.
func (c *Catalog) Pending() []string {
	var missing []string
	for name, seen := range map[string]bool{
		"clusters": c.seen.clusters, "listeners": c.seen.listeners, "names": c.seen.names,
	} {
		if !seen {
			missing = append(missing, name)
		}
	}
	if c.unanswered > 0 {
		for name, a := range c.assignments {
			if !a.answered {
				missing = append(missing, "endpoints "+name)
			}
		}
	}
	for name := range c.wantedRoutes() {
		if _, known := c.tables[name]; !known {
			missing = append(missing, "routes "+name)
		}
	}
	slices.Sort(missing)
	return missing
}

// Snapshot returns the one in force, nil before the first.
func (c *Catalog) Snapshot() *Snapshot { return c.snapshot.Load() }

// Ready is closed once there is a Snapshot.
func (c *Catalog) Ready() <-chan struct{} { return c.ready }
