// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"maps"
	"net/netip"
	"sync/atomic"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Host is an endpoint together with its load. The endpoint of a Host never
// changes: when the control plane changes it, a new Host takes over the load.
type Host struct {
	Endpoint *resource.Endpoint
	load     *load
}

// A load is what is known of a host beyond its configuration. It lives as
// long as any Host that shares it.
type load struct{ active atomic.Int64 }

// Acquire counts one more request or connection on its way to the host, until
// Release.
func (h *Host) Acquire() { h.load.active.Add(1) }

// Release ends what Acquire began.
func (h *Host) Release() { h.load.active.Add(-1) }

// Active is the number of requests and connections on their way.
func (h *Host) Active() int64 { return h.load.active.Load() }

// Same reports whether two hosts are the same endpoint, as seen before and
// after an update.
func (h *Host) Same(o *Host) bool { return o != nil && h.load == o.load }

func (h *Host) weight() float64 { return float64(max(h.Endpoint.Weight, 1)) }

// A hostKey tells the hosts of one cluster apart. It says the same as
// [resource.Endpoint.Key] without building a string.
type hostKey struct {
	addr netip.AddrPort
	host string
	port uint16
}

func keyOf(e *resource.Endpoint) hostKey {
	if e.Address.IsValid() {
		return hostKey{addr: e.Address}
	}
	return hostKey{host: e.Hostname, port: e.Port}
}

// equal reports whether two endpoints of the same key are configured alike.
func equal(a, b *resource.Endpoint) bool {
	return a == b || a.Weight == b.Weight && a.Health == b.Health && a.Hostname == b.Hostname &&
		a.Port == b.Port && a.Tunnel == b.Tunnel && a.Workload == b.Workload && maps.Equal(a.Match, b.Match)
}

// A registry makes the hosts of a new state out of those of the old one.
type registry struct {
	old  map[hostKey]*Host
	seen map[hostKey]struct{}
}

func newRegistry(old *state, size int) *registry {
	r := &registry{seen: make(map[hostKey]struct{}, size)}
	if old != nil && len(old.hosts) > 0 {
		r.old = make(map[hostKey]*Host, len(old.hosts))
		for _, h := range old.hosts {
			r.old[keyOf(h.Endpoint)] = h
		}
	}
	return r
}

// host returns the host of an endpoint. An endpoint that is listed twice
// counts once, at its first place, as in Envoy: then it returns nil.
func (r *registry) host(e *resource.Endpoint) *Host {
	key := keyOf(e)
	if _, dup := r.seen[key]; dup {
		return nil
	}
	r.seen[key] = struct{}{}
	old := r.old[key]
	switch {
	case old == nil:
		return &Host{Endpoint: e, load: new(load)}
	case equal(old.Endpoint, e):
		return old
	}
	return &Host{Endpoint: e, load: old.load}
}
