// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// A Conn is an accepted connection of a client.
type Conn interface {
	net.Conn
	CloseWrite() error
	// OnReset sets what is called, on any goroutine and at most once, when
	// the client has reset the connection.
	OnReset(func())
	// Abort drops the connection so that the client sees a reset.
	Abort()
}

// A Downstream tells where a connection came from and how to treat it.
type Downstream struct {
	Manager  *resource.HTTPManager
	Src, Dst netip.AddrPort
	// H2 tells that the client speaks HTTP/2. If it is false, the first bytes
	// decide.
	H2 bool
	// Snapshot returns the mesh as it is now; each request asks anew. nil:
	// that of Config.Catalog.
	Snapshot func() *catalog.Snapshot
}

// A Config is what a Proxy needs. Upstream and Telemetry are required.
type Config struct {
	Catalog   *catalog.Catalog
	Upstream  *upstream.Manager
	Telemetry *telemetry.Telemetry
	// Passthrough dials destinations that the mesh does not know; nil: as
	// Upstream does.
	Passthrough upstream.DialFunc
	// OutsideAllow passes them even where the mesh's policy forbids them.
	OutsideAllow bool
	Logger       *slog.Logger
}

// A Proxy serves HTTP connections. It is safe for concurrent use.
type Proxy struct {
	cfg Config
	log *slog.Logger

	active  atomic.Int64 // exchanges
	retries atomic.Int64
	replays atomic.Int64
	refused atomic.Int64 // requests that were not valid HTTP
}

// New returns a Proxy.
func New(cfg Config) *Proxy {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Proxy{cfg: cfg, log: cfg.Logger}
}

// Status counts what a Proxy does.
type Status struct {
	Active  int64 // requests under way
	Retries int64 // tries after the first, by the mesh's policy
	Replays int64 // requests sent again because a pooled connection was dead
	Refused int64 // requests that were not valid HTTP
}

// Status returns the counters.
func (p *Proxy) Status() Status {
	return Status{Active: p.active.Load(), Retries: p.retries.Load(), Replays: p.replays.Load(), Refused: p.refused.Load()}
}

// Serve serves one connection and closes it. It returns when nothing of it is
// left; the end of ctx cuts it off.
func (p *Proxy) Serve(ctx context.Context, c Conn, in Downstream) {
	if in.Snapshot == nil {
		in.Snapshot = p.cfg.Catalog.Snapshot
	}
	if in.H2 {
		p.serve2(ctx, c, &in)
		return
	}
	p.serve1(ctx, c, &in)
}

// preface is how an HTTP/2 client without TLS begins (RFC 9113 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Why an exchange was ended before its time. What wraps none of them came from
// one of the sides.
var (
	errClientGone     = errors.New("client gone")
	errDrained        = errors.New("nasp-tun is ending")
	errTimeout        = errors.New("the route's time-out passed")
	errTryTimeout     = errors.New("the time-out of one try passed")
	errRequestTimeout = errors.New("the request did not come in whole in time")
	errIdle           = errors.New("the idle time-out passed")
)

// replayed is a connection some of whose bytes were read ahead.
type replayed struct {
	Conn
	r io.Reader
}

func (c *replayed) Read(b []byte) (int, error) { return c.r.Read(b) }
