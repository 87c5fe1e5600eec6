// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// A DialFunc opens a socket, as net.Dialer.DialContext does. In the daemon it
// marks the socket, so that its packets bypass the tunnel.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// A Config is what a Manager needs.
type Config struct {
	// Identity holds the certificate that is shown to the mesh. Without it
	// every endpoint that wants mutual TLS is refused.
	Identity *identity.Store
	// Dial opens every socket.
	Dial DialFunc
	// Lookup resolves the names of STRICT_DNS and LOGICAL_DNS clusters. It
	// must ask the host's own resolvers: the mesh's DNS would answer with
	// the very address whose cluster is being resolved. nil: such clusters
	// have no endpoints.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	Logger *slog.Logger
}

// A Manager makes, keeps and ends connections. It is safe for concurrent use.
type Manager struct {
	// Set by New, then read-only.
	cfg   Config
	log   *slog.Logger
	h2    *http.Transport
	names *names

	mu     sync.Mutex // guards the following
	pools  map[poolKey]*pool
	serial string // of the certificate that pools were last swept for
	closed bool   // Run has ended: nothing is kept any more
	limits map[string]*limits

	stats stats
}

type stats struct {
	dials, dialErrors, reused, stale, retired, overflows, evicted atomic.Int64
	open, idle, pools                                             atomic.Int64
}

// New returns a Manager. It starts nothing; see [Manager.Run].
func New(cfg Config) *Manager {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no dial function configured")
		}
	}
	m := &Manager{
		cfg: cfg, log: cfg.Logger,
		h2:     newTransport(),
		pools:  make(map[poolKey]*pool),
		limits: make(map[string]*limits),
	}
	m.names = newNames(cfg.Lookup, cfg.Logger)
	return m
}

// reapEvery is how often idle connections are looked at. Their time-out is
// checked at each use too, so this only frees what nobody asks for.
const reapEvery = 10 * time.Second

// Run refreshes DNS names and ends connections that are idle for too long or
// were made with a replaced certificate. When ctx ends it closes what is kept;
// connections in use are their users'.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range refreshWorkers {
		wg.Go(func() { m.names.refresh(ctx) })
	}
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.reap()
		case <-ctx.Done():
			m.close()
			wg.Wait()
			return nil
		}
	}
}

// Status counts what the Manager did and holds.
type Status struct {
	Open  int64 // connections to endpoints
	Idle  int64 // HTTP/1 connections waiting in pools
	Pools int64

	Dials      int64
	DialErrors int64 // failed dials and handshakes
	Reused     int64 // exchanges on a connection out of a pool
	Stale      int64 // pooled connections found dead
	Retired    int64 // pooled connections of a replaced certificate
	Evicted    int64 // pooled connections ended for room
	Overflows  int64 // refused by a breaker of the cluster
	Names      int   // DNS clusters
	NameErrors int64 // failed look-ups
}

// Status returns the counters.
func (m *Manager) Status() Status {
	s := &m.stats
	n, failed := m.names.status()
	return Status{
		Open: s.open.Load(), Idle: s.idle.Load(), Pools: s.pools.Load(),
		Dials: s.dials.Load(), DialErrors: s.dialErrors.Load(), Reused: s.reused.Load(), Stale: s.stale.Load(),
		Retired: s.retired.Load(), Evicted: s.evicted.Load(), Overflows: s.overflows.Load(),
		Names: n, NameErrors: failed,
	}
}
