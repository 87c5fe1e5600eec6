// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const (
	// defaultDNSRefresh is Envoy's dns_refresh_rate.
	defaultDNSRefresh = 5 * time.Second
	// lookupTimeout bounds one look-up in the background.
	lookupTimeout = 10 * time.Second
	// retryLookup is how long a failure stands before the next one is asked,
	// so that a broken name costs one look-up a second and not one a request.
	retryLookup = time.Second
	// refreshWorkers and refreshQueue bound the look-ups under way. What does
	// not fit is asked by a later use.
	refreshWorkers = 4
	refreshQueue   = 64
)

// names holds the resolved endpoints of the DNS clusters in use.
type names struct {
	lookup func(context.Context, string) ([]netip.Addr, error)
	log    *slog.Logger
	due    chan *resolved

	mu     sync.Mutex
	byName map[string]*resolved
	failed int64
}

// resolved is one DNS cluster. Look-ups happen when it is used: the first one
// in the caller's time, later ones behind its back, and their failures leave
// the last good answer in force.
type resolved struct {
	name string
	lb   *balance.Cluster
	turn chan struct{} // holds one token: the right to look up

	mu     sync.Mutex // guards the following
	cfg    *resource.Cluster
	set    *resource.Endpoints // the answer in force; nil: none yet
	until  time.Time           // when to ask again
	err    error               // of the last look-up
	queued bool
}

func newNames(lookup func(context.Context, string) ([]netip.Addr, error), log *slog.Logger) *names {
	return &names{lookup: lookup, log: log, due: make(chan *resolved, refreshQueue), byName: make(map[string]*resolved)}
}

// endpoints returns the balancer over the addresses of a DNS cluster.
func (n *names) endpoints(ctx context.Context, cfg *resource.Cluster) (*balance.Cluster, error) {
	r := n.of(cfg)
	now := time.Now()
	r.mu.Lock()
	have, err := r.set != nil, r.err
	fresh := now.Before(r.until)
	enqueue := have && !fresh && !r.queued
	r.queued = r.queued || enqueue
	r.mu.Unlock()
	switch {
	case enqueue:
		select {
		case n.due <- r:
		default:
			r.unqueue()
		}
	case !have && fresh:
		return nil, err
	case !have:
		ctx, cancel := context.WithTimeout(ctx, (&Target{Cluster: cfg}).connectTimeout())
		defer cancel()
		if err := n.resolve(ctx, r); err != nil {
			return nil, err
		}
	}
	return r.lb, nil
}

// of returns the entry of a cluster. A changed configuration is looked up
// anew; the load of its hosts stays.
func (n *names) of(cfg *resource.Cluster) *resolved {
	n.mu.Lock()
	r := n.byName[cfg.Name]
	if r == nil {
		r = &resolved{name: cfg.Name, cfg: cfg, turn: make(chan struct{}, 1)}
		bare := *cfg
		bare.Endpoints = nil
		r.lb = balance.New(&bare)
		n.byName[cfg.Name] = r
	}
	n.mu.Unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg != cfg {
		r.cfg, r.until = cfg, time.Time{}
		r.lb.Configure(cfg)
	}
	return r
}

// resolve looks a cluster up, unless another caller does so meanwhile.
func (n *names) resolve(ctx context.Context, r *resolved) error {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	cfg, fresh, err := r.cfg, time.Now().Before(r.until), r.err
	r.mu.Unlock()
	if fresh {
		return err
	}
	set, err := n.ask(ctx, cfg)
	if err != nil {
		n.mu.Lock()
		n.failed++
		n.mu.Unlock()
	}
	r.settle(set, err, cfg)
	return err
}

// settle notes the outcome of a look-up.
func (r *resolved) settle(set *resource.Endpoints, err error, cfg *resource.Cluster) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if err != nil {
		r.until = time.Now().Add(retryLookup)
		return
	}
	every := cfg.DNSRefresh
	if every <= 0 {
		every = defaultDNSRefresh
	}
	r.until = time.Now().Add(every)
	r.set = set
	r.lb.SetEndpoints(set)
}

func (r *resolved) unqueue() {
	r.mu.Lock()
	r.queued = false
	r.mu.Unlock()
}

// refresh does look-ups that became due, until ctx ends.
func (n *names) refresh(ctx context.Context) {
	for {
		select {
		case r := <-n.due:
			look, cancel := context.WithTimeout(ctx, lookupTimeout)
			if err := n.resolve(look, r); err != nil {
				n.log.Debug("look-up failed, keeping the last answer", "cluster", r.name, "err", err)
			}
			cancel()
			r.unqueue()
		case <-ctx.Done():
			return
		}
	}
}

// ask looks up every name of a cluster. A name that fails costs its own
// endpoints only; if all fail there is an error and no set.
func (n *names) ask(ctx context.Context, cfg *resource.Cluster) (*resource.Endpoints, error) {
	set := &resource.Endpoints{Name: cfg.Name}
	if cfg.Endpoints == nil {
		return set, nil
	}
	set.Overprovisioning = cfg.Endpoints.Overprovisioning
	var errs []error
	found := false
	for _, l := range cfg.Endpoints.Localities {
		configured := l.Endpoints
		l.Endpoints = nil
		for _, e := range configured {
			more, err := n.expand(ctx, cfg, e)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			found = true
			l.Endpoints = append(l.Endpoints, more...)
		}
		set.Localities = append(set.Localities, l)
	}
	if !found && len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return set, nil
}

// expand turns one configured endpoint into one per address: all of them, or
// the first for LOGICAL_DNS.
func (n *names) expand(ctx context.Context, cfg *resource.Cluster, e *resource.Endpoint) ([]*resource.Endpoint, error) {
	if e.Address.IsValid() {
		return []*resource.Endpoint{e}, nil
	}
	if n.lookup == nil {
		return nil, fmt.Errorf("look up %s: no resolver", e.Hostname)
	}
	addrs, err := n.lookup(ctx, e.Hostname)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", e.Hostname, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("look up %s: no addresses", e.Hostname)
	}
	if cfg.Discovery == resource.LogicalDNS {
		addrs = addrs[:1]
	}
	list := make([]*resource.Endpoint, len(addrs))
	for i, a := range addrs {
		one := *e
		one.Address = netip.AddrPortFrom(a.Unmap(), e.Port)
		list[i] = &one
	}
	return list, nil
}

func (n *names) status() (count int, failed int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.byName), n.failed
}
