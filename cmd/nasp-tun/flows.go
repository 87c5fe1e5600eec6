// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// flows hands what the stack captures to those who serve it: the mesh, or the
// host's loopback. It is where netstack and mesh meet, who do not know each
// other.
type flows struct {
	mesh interface {
		ServeTCP(context.Context, proxy.Flow)
		ServeUDP(context.Context, proxy.UDPFlow)
		Echo(netip.Addr) bool
	}
	loopback *loopback // nil: closed

	mu       sync.Mutex
	open     int           // TCP flows being served
	draining chan struct{} // closed when open is 0; nil until drain
}

// ServeTCP implements netstack.Handler.
func (h *flows) ServeTCP(ctx context.Context, f *netstack.TCPFlow) {
	if !h.enter() {
		f.Reject()
		return
	}
	defer h.leave()
	flow := tcpFlow{f}
	switch dst := f.Destination(); {
	case dst.Port() == dnsPort:
		h.mesh.ServeTCP(withAsked(ctx, dst), flow)
	case dst.Addr() == host.HostLoopbackAddr:
		if h.loopback == nil {
			f.Reject()
			return
		}
		h.loopback.serveTCP(ctx, flow)
	case closed(dst.Addr()):
		f.Reject()
	default:
		h.mesh.ServeTCP(ctx, flow)
	}
}

// ServeUDP implements netstack.Handler.
func (h *flows) ServeUDP(ctx context.Context, f *netstack.UDPFlow) {
	flow := udpFlow{f}
	switch dst := f.Destination(); {
	case dst.Port() == dnsPort:
		h.mesh.ServeUDP(withAsked(ctx, dst), flow)
	case dst.Addr() == host.HostLoopbackAddr:
		if h.loopback == nil {
			f.Reject()
			return
		}
		h.loopback.serveUDP(ctx, flow)
	case closed(dst.Addr()):
		f.Reject()
	default:
		h.mesh.ServeUDP(ctx, flow)
	}
}

// Echo implements netstack.Handler.
func (h *flows) Echo(a netip.Addr) bool {
	switch a {
	case host.ResolverAddr:
		return true
	case host.HostLoopbackAddr:
		return h.loopback != nil
	}
	return h.mesh.Echo(a)
}

const dnsPort = 53

// ownRange is reserved to a host's own use (RFC 7335). Nothing in it is to be
// looked for outside.
var ownRange = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 0, 0}), 29)

func own(a netip.Addr) bool { return ownRange.Contains(a.Unmap()) }

// closed reports whether an address means the machine that uses it. Kernels send
// nothing to such addresses, but a raw socket does: as IPv4 in IPv6 loopback too.
// Dialled outside they would be the host, past --no-host-loopback.
func closed(a netip.Addr) bool {
	return own(a) || a.Unmap().IsLoopback() || a.Unmap().IsUnspecified()
}

func (h *flows) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining != nil {
		return false
	}
	h.open++
	return true
}

func (h *flows) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	if h.open == 0 && h.draining != nil {
		close(h.draining)
	}
}

// drain refuses new connections and returns a channel that is closed when the
// last one has ended. It is called once.
func (h *flows) drain() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = make(chan struct{})
	if h.open == 0 {
		close(h.draining)
	}
	return h.draining
}

// tcpFlow is a netstack flow as the mesh wants it. Only the type that Accept
// returns differs.
type tcpFlow struct{ *netstack.TCPFlow }

// Accept implements proxy.Flow.
func (f tcpFlow) Accept() (proxy.Conn, error) {
	c, err := f.TCPFlow.Accept()
	if err != nil {
		return nil, err // not a nil *TCPConn in an interface
	}
	return c, nil
}

// udpFlow likewise.
type udpFlow struct{ *netstack.UDPFlow }

// Accept implements proxy.UDPFlow.
func (f udpFlow) Accept() (net.Conn, error) {
	c, err := f.UDPFlow.Accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// askedKey carries the resolver that CMD asked through to the forwarder, for
// --dns-passthrough.
type askedKey struct{}

func withAsked(ctx context.Context, server netip.AddrPort) context.Context {
	return context.WithValue(ctx, askedKey{}, server)
}

func asked(ctx context.Context) (netip.AddrPort, bool) {
	a, ok := ctx.Value(askedKey{}).(netip.AddrPort)
	return a, ok
}
