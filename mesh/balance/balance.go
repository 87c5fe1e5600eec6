// SPDX-License-Identifier: Apache-2.0

// Package balance chooses one endpoint among those of a cluster.
//
// It follows Envoy step by step, so that a mesh sees from here the load that
// it would see from a sidecar:
//
//  1. A priority is drawn. Each takes as much of the load as its share of
//     healthy endpoints, times the overprovisioning factor, can bear; the rest
//     spills over to the next one. Degraded endpoints take what is left.
//  2. With locality weights, a locality of that priority is drawn, by weight
//     times its own health.
//  3. The policy picks the endpoint: power of two choices by active requests,
//     round robin, or random. Endpoints of unequal weights go through an
//     earliest-deadline-first schedule.
//
// A [Cluster] has one writer and many readers. A reader sees the endpoints as
// one immutable state behind one atomic pointer; what must outlive an update,
// such as the number of active requests of a host, is shared between states.
// The package does no I/O and starts no goroutine.
package balance

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// ErrNoEndpoint says that a cluster has no endpoint that may be used: it has
// none, or none is healthy and its panic threshold does not allow others.
var ErrNoEndpoint = errors.New("no healthy endpoint")

// A Cluster chooses among the endpoints of one cluster and keeps their load
// across updates. It is safe for concurrent use.
type Cluster struct {
	mu    sync.Mutex // orders Configure and SetEndpoints
	cfg   resource.BalanceConfig
	state atomic.Pointer[state]
	// dialled: the endpoint is the address that the client dialled.
	dialled atomic.Bool
}

// New returns the balancer of a cluster, with the endpoints that its
// configuration holds inline.
func New(cfg *resource.Cluster) *Cluster {
	c := &Cluster{cfg: cfg.Balance}
	c.dialled.Store(cfg.Discovery == resource.OriginalDst)
	c.state.Store(newState(c.cfg, cfg.Endpoints, nil))
	return c
}

// Configure takes a changed configuration. The endpoints stay: those of a
// static cluster are set with SetEndpoints too.
func (c *Cluster) Configure(cfg *resource.Cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialled.Store(cfg.Discovery == resource.OriginalDst)
	if c.cfg == cfg.Balance {
		return
	}
	c.cfg = cfg.Balance
	old := c.state.Load()
	c.state.Store(newState(c.cfg, old.endpoints, old))
}

// SetEndpoints replaces the endpoints in one step. A host that has the key of
// an earlier one keeps its load. A nil set is an empty one.
func (c *Cluster) SetEndpoints(e *resource.Endpoints) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Store(newState(c.cfg, e, c.state.Load()))
}

// Endpoints returns the set in use, which may be nil.
func (c *Cluster) Endpoints() *resource.Endpoints { return c.state.Load().endpoints }

// Hosts returns every host, whatever its health. The slice is not to be
// changed.
func (c *Cluster) Hosts() []*Host { return c.state.Load().hosts }

// HasHealthy reports whether a host is there that Pick may return for its
// health, rather than in panic. A cluster whose endpoint is the address that
// the client dialled always has one.
func (c *Cluster) HasHealthy() bool {
	return c.dialled.Load() || c.state.Load().available
}

// A Pick is one question to a Cluster. The zero value asks for any endpoint.
type Pick struct {
	// Previous are the hosts already tried, to be avoided.
	Previous []*Host
	// Attempts is how many further selections may be made while the result
	// is among Previous. After the last one it is returned nevertheless, as
	// Envoy's host_selection_retry_max_attempts has it.
	Attempts int
	// Rand decides what is left to chance; 0 stands for a number of its own.
	Rand uint64
}

// Pick chooses a host, or returns ErrNoEndpoint. The caller holds the host
// with Acquire for as long as it uses it. Pick does not allocate.
func (c *Cluster) Pick(p *Pick) (*Host, error) {
	st := c.state.Load()
	r := newRNG(p)
	for attempt := 0; ; attempt++ {
		h := st.choose(&r)
		if h == nil {
			return nil, ErrNoEndpoint
		}
		if p == nil || attempt >= p.Attempts || !p.tried(h) {
			return h, nil
		}
	}
}

func (p *Pick) tried(h *Host) bool {
	return slices.ContainsFunc(p.Previous, h.Same)
}
