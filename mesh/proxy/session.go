// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

var (
	errNotReady = errors.New("no configuration from the control plane yet")
	errGone     = errors.New("the client gave up")
)

// A session is one TCP flow on its way. It belongs to the goroutine of
// ServeTCP and keeps the Snapshot that it began with.
type session struct {
	p        *Proxy
	flow     Flow
	snapshot *catalog.Snapshot
	record   *telemetry.Record
	first    sniffer // first.c is the client, nil until it was accepted
}

// serve finds the filter chain and lets it have the flow.
func (s *session) serve(ctx context.Context) {
	if s.snapshot == nil {
		s.refuse(telemetry.NotReady, errNotReady)
		return
	}
	dst := s.record.Dst
	l := s.snapshot.Listener(dst)
	if l == nil { // no policy for the outside either
		s.outside(ctx, &resource.TCPProxy{})
		return
	}
	var seen catalog.Sniff
	if tls, http := l.Inspect(); tls || http {
		if !s.accept() || !s.sniff(ctx, l, &seen) {
			return
		}
	}
	chain := match(l, dst, &seen)
	switch {
	case chain == nil:
		s.refuse(telemetry.NoChain, fmt.Errorf("listener %s: no filter chain for %s", l.Config.Name, describe(&seen)))
	case chain.Refused != "":
		s.refuse(telemetry.RefusedFilter, fmt.Errorf("listener %s: %s", l.Config.Name, chain.Refused))
	case chain.HTTP != nil:
		s.http(ctx, chain.HTTP)
	default:
		s.tcp(ctx, chain.TCP)
	}
}

// match chooses the chain by what was seen. HTTP/1.0 goes where HTTP/1.1 does
// if the manager there accepts it: istiod, asked for HTTP/1.0 by a node, says so
// in the manager and forgets the chain's protocols, and the request would be
// passed by as raw TCP (istio, networking/core/listener.go: only PILOT_HTTP10
// adds http/1.0 to them).
func match(l *catalog.Listener, dst netip.AddrPort, seen *catalog.Sniff) *resource.FilterChain {
	chain := l.Match(dst, seen)
	if len(seen.Protocols) != 1 || seen.Protocols[0] != http10 || chain != nil && chain.HTTP != nil {
		return chain
	}
	newer := *seen
	newer.Protocols = []string{http11}
	if c := l.Match(dst, &newer); c != nil && c.HTTP != nil && c.HTTP.AcceptHTTP10 {
		return c
	}
	return chain
}

// sniff looks at the client's first bytes. It reports whether the flow goes
// on.
func (s *session) sniff(ctx context.Context, l *catalog.Listener, seen *catalog.Sniff) bool {
	wait := l.Config.SniffTimeout
	if wait == 0 && s.serverMaySpeak(l) {
		wait = serverFirst
	}
	lift, err := s.first.within(ctx, wait)
	if err != nil {
		s.refuse(telemetry.ClientGone, err)
		return false
	}
	*seen = s.first.inspect(l.Inspect())
	lift()
	switch {
	case ctx.Err() != nil:
		s.refuse(telemetry.Drained, context.Cause(ctx))
		return false
	case s.first.gone():
		s.refuse(telemetry.ClientGone, s.first.err)
		return false
	case s.first.silent() && !s.serverMaySpeak(l):
		// A probe, or a connection opened ahead and not used. As with HTTP
		// there is nothing to record.
		_ = s.first.c.Close()
		return false
	case s.first.timedOut():
		s.p.cfg.Telemetry.SniffTimedOut()
		if l.Config.SniffTimeout > 0 && !l.Config.ContinueOnTimeout {
			s.refuse(telemetry.Sniff, fmt.Errorf("listener %s: no first bytes within %v", l.Config.Name, wait))
			return false
		}
		s.first.err = nil
	}
	return true
}

// serverMaySpeak reports whether the chain of a silent client leads to a server
// at all. Where it does not, or where it speaks HTTP, waiting for the client
// costs nothing: a connection opened ahead of its first request lives.
func (s *session) serverMaySpeak(l *catalog.Listener) bool {
	chain := l.Match(s.record.Dst, &catalog.Sniff{Transport: transportRaw})
	if chain == nil || chain.TCP == nil {
		return false
	}
	if !s.snapshot.Owns(s.record.Dst.Addr()) {
		return true
	}
	for _, c := range chain.TCP.Clusters {
		if cell := s.snapshot.Cluster(c.Name); cell != nil && !cell.Passthrough() && !cell.BlackHole() {
			return true
		}
	}
	return false
}

// http hands the connection to the HTTP engine, which records each request. A
// client that ends without one leaves no record, as with Envoy.
func (s *session) http(ctx context.Context, m *resource.HTTPManager) {
	if !s.accept() {
		return
	}
	defer s.first.c.Close()
	lift, err := s.first.within(ctx, m.IdleTimeout)
	if err != nil {
		s.refuse(telemetry.ClientGone, err)
		return
	}
	h2 := s.first.http2()
	lift()
	if s.first.gone() {
		s.first.c.Abort()
		return
	}
	if len(s.first.buf) == 0 {
		return
	}
	s.p.cfg.HTTP.Serve(ctx, s.first.conn(), httpproxy.Downstream{
		Manager: m, Src: s.record.Src, Dst: s.record.Dst, H2: h2,
		Snapshot: s.p.cfg.Catalog.Snapshot,
	})
}

// tcp chooses a cluster and an endpoint and carries the flow there.
func (s *session) tcp(ctx context.Context, t *resource.TCPProxy) {
	choice := catalog.Choose(t.Clusters, rand.Uint64())
	if choice == nil {
		s.refuse(telemetry.NoCluster, errors.New("the TCP proxy names no cluster"))
		return
	}
	cell := s.snapshot.Cluster(choice.Name)
	if cell == nil {
		s.refuse(telemetry.NoCluster, fmt.Errorf("cluster %s is not known", choice.Name))
		return
	}
	s.record.Cluster = cell.Config
	switch {
	case cell.BlackHole() && (!s.p.cfg.OutsideAllow || s.snapshot.Owns(s.record.Dst.Addr())):
		s.refuse(telemetry.Blackhole, fmt.Errorf("the outbound policy of the mesh forbids %s", s.record.Dst))
		return
	case cell.BlackHole(), cell.Passthrough():
		s.outside(ctx, t)
		return
	}
	s.carry(ctx, t, func(ctx context.Context) (upstream.Target, error) {
		return s.p.cfg.Upstream.Pick(ctx, cell.Config, cell.LB, s.record.Dst, &balance.Pick{})
	})
}

// passthrough is the cluster of what the mesh does not know. It is our own
// rather than the mesh's, so that nothing but a plain dial can come of it.
var passthrough = &resource.Cluster{Name: catalog.PassthroughCluster, Discovery: resource.OriginalDst}

// outside carries a flow to where the client wanted, in clear, if that is not
// the mesh's.
func (s *session) outside(ctx context.Context, t *resource.TCPProxy) {
	s.record.Cluster = passthrough
	// The newest word counts: the client may have been silent for hours.
	if s.p.cfg.Catalog.Snapshot().Owns(s.record.Dst.Addr()) {
		s.refuse(telemetry.Unrouted, fmt.Errorf("%s belongs to the mesh, and no listener takes port %d", s.record.Dst.Addr(), s.record.Dst.Port()))
		return
	}
	s.carry(ctx, t, func(context.Context) (upstream.Target, error) {
		return upstream.Target{Cluster: passthrough, Dst: s.record.Dst, Dial: s.p.cfg.Passthrough}, nil
	})
}

// carry connects, accepts the client and relays.
func (s *session) carry(ctx context.Context, t *resource.TCPProxy, pick func(context.Context) (upstream.Target, error)) {
	server, host, err := s.connect(ctx, pick)
	if host != nil {
		defer host.Release() // a flow is load on its endpoint while it lives
	}
	if err != nil {
		s.refuse(s.reasonOf(ctx, err), err)
		return
	}
	defer server.Close()
	if !s.accept() {
		server.Abort()
		return
	}
	r := &relay{
		client: s.first.c, head: s.first.buf, server: server,
		transfer: s.p.cfg.Telemetry.Opened(s.record),
		idle:     t.IdleTimeout, duration: t.MaxDuration,
	}
	s.first.buf = nil // the relay has it now
	defer r.client.Close()
	if reason, err := r.run(ctx); reason != telemetry.OK {
		s.record.Fail(reason, err)
	}
	s.p.cfg.Telemetry.Closed(s.record)
}

// connect picks an endpoint and connects, unless the client gives up before.
// A host that it returns is acquired.
func (s *session) connect(ctx context.Context, pick func(context.Context) (upstream.Target, error)) (*upstream.Conn, *balance.Host, error) {
	ctx, stop := s.whileClientWaits(ctx)
	defer stop()
	target, err := pick(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := s.mayDial(&target); err != nil {
		return nil, nil, err
	}
	if target.Host != nil {
		target.Host.Acquire()
		s.record.Endpoint = target.Host.Endpoint
	}
	server, err := s.p.cfg.Upstream.Connect(ctx, target)
	if err != nil {
		return nil, target.Host, err
	}
	s.record.Tries = 1
	s.record.Upstream = target.Address().String()
	s.record.PeerID = server.PeerID()
	s.record.MTLS = server.Transport() == resource.IstioMTLS
	return server, target.Host, nil
}

// mayDial refuses clear text to an address for which the mesh says otherwise
// than the cluster does.
func (s *session) mayDial(t *upstream.Target) error {
	tr, dst := t.Transport(), t.Address()
	switch {
	case tr.Kind != resource.Plain:
		return nil
	case s.snapshot.HBONEOnly(dst.Addr()):
		// For headless services of an ambient mesh, xDS alone says clear text.
		return &upstream.Error{
			Reason: upstream.ReasonUnsupported,
			Err:    fmt.Errorf("connect %s: the mesh wants HBONE, which is not supported yet", dst),
		}
	case t.Host == nil && s.snapshot.Strays(t.Cluster, dst.Addr()):
		return &upstream.Error{
			Reason: string(telemetry.Unrouted),
			Err:    fmt.Errorf("connect %s: the address belongs to another service than %s", dst, t.Cluster.Name),
		}
	}
	return nil
}

// whileClientWaits returns a context that ends when the client gives up.
func (s *session) whileClientWaits(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if s.first.c != nil {
		s.first.c.OnReset(func() { cancel(errGone) })
		return ctx, func() { cancel(nil) }
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.flow.Done():
			cancel(errGone)
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
	}
}

// reasonOf tells why there is no connection. ctx is that of the flow: it ends
// when we do, and not when the client does.
func (s *session) reasonOf(ctx context.Context, err error) telemetry.Reason {
	if ctx.Err() != nil {
		return telemetry.Drained
	}
	return telemetry.Known(upstream.ReasonOf(err, ""), telemetry.Connect)
}

// accept completes the client's handshake, once.
func (s *session) accept() bool {
	if s.first.c != nil {
		return true
	}
	c, err := s.flow.Accept()
	if err != nil {
		s.record.Fail(telemetry.ClientGone, fmt.Errorf("accept: %w", err))
		s.p.cfg.Telemetry.Closed(s.record)
		return false
	}
	s.first.c = c
	return true
}

// refuse ends a flow that was not relayed, with a reset and its record.
func (s *session) refuse(reason telemetry.Reason, err error) {
	s.record.Fail(reason, err)
	if s.first.c == nil {
		s.flow.Reject()
	} else {
		s.first.c.Abort()
		_ = s.first.c.Close() // nothing is left to report to
	}
	s.p.log.Debug("connection refused", "src", s.record.Src, "dst", s.record.Dst, "reason", reason, "err", err)
	s.p.cfg.Telemetry.Closed(s.record)
}
