// SPDX-License-Identifier: Apache-2.0

// Package proxy serves one captured flow: it finds out where the mesh wants it
// to go, makes the connection there, and carries the bytes.
//
// A TCP flow takes these steps, each in one function of this package:
//
//	Snapshot.Listener   by the address dialled                  session.serve
//	first bytes         only where the filter chains differ     session.sniff
//	Listener.Match      one filter chain                        session.serve
//	HTTP manager        handed to package httpproxy             session.http
//	TCP proxy           weighted cluster, endpoint, connection  session.tcp
//	Accept              now the client's handshake completes    session.carry
//	relay               until both directions have ended        relay.run
//
// The client's handshake is answered only when the upstream connection stands,
// so that a destination that refuses looks refused. Where bytes must be seen
// first, it is answered first, and a later failure is a reset.
//
// Failing closed is decided here. An address that the mesh owns is reached as
// the mesh says or not at all: without a listener that takes it, or where its
// workloads speak HBONE only, the flow is refused and never passed through. A
// flow that is refused gets a reset, and each flow ends in one record.
package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// A Flow is a captured TCP connection whose handshake is still pending.
type Flow interface {
	Source() netip.AddrPort
	Destination() netip.AddrPort
	// Done is closed when the client gives up before it is accepted.
	Done() <-chan struct{}
	// Accept completes the handshake. Either it or Reject is called, once.
	Accept() (Conn, error)
	// Reject answers with a reset.
	Reject()
}

// A Conn is the client's connection. Closing it while reads or writes wait
// ends them.
type Conn interface {
	net.Conn
	// CloseWrite sends the end of our stream and leaves the other open.
	CloseWrite() error
	// OnReset sets what is called when the client resets the connection; at
	// once if it has already.
	OnReset(func())
	// Abort resets the connection.
	Abort()
}

// A UDPFlow is a captured flow of datagrams between two addresses.
type UDPFlow interface {
	Source() netip.AddrPort
	Destination() netip.AddrPort
	// Accept returns the client's side, one datagram a Read and a Write. Its
	// Read fails when the flow has been idle for long.
	Accept() (net.Conn, error)
	// Reject answers with port unreachable.
	Reject()
}

// An HTTPServer serves a client's HTTP connection until it has ended.
type HTTPServer interface {
	Serve(ctx context.Context, c httpproxy.Conn, in httpproxy.Downstream)
}

// A Config holds the parts that a flow meets. All but Logger are required.
type Config struct {
	Catalog   *catalog.Catalog
	Upstream  *upstream.Manager
	HTTP      HTTPServer
	Telemetry *telemetry.Telemetry
	// Passthrough dials what does not belong to the mesh.
	Passthrough upstream.DialFunc
	// OutsideAllow passes through what the mesh does not know even where its
	// policy (REGISTRY_ONLY) says otherwise.
	OutsideAllow bool
	Logger       *slog.Logger
}

// A Proxy serves flows. It keeps nothing between them, and its methods are
// safe for concurrent use.
type Proxy struct {
	cfg Config
	log *slog.Logger
}

// New returns a Proxy.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, log: cfg.Logger}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p
}

// ServeTCP serves a flow and returns when it has ended. When ctx ends, so does
// the flow, with a reset.
func (p *Proxy) ServeTCP(ctx context.Context, f Flow) {
	s := &session{
		p: p, flow: f, snapshot: p.cfg.Catalog.Snapshot(),
		record: &telemetry.Record{
			Start: time.Now(), Protocol: telemetry.TCP,
			Src: f.Source(), Dst: unmap(f.Destination()),
		},
	}
	s.serve(ctx)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
