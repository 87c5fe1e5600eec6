// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	// synSilence is how long after a SYN the client may stay silent before it
	// counts as gone. Linux says nothing when a program gives up on a pending
	// connect, it only stops sending the SYN again. It sends it after 1 s at
	// first (RFC 6298; older systems after 3 s), then after twice the time
	// before, so that three times the last gap is silence too.
	synSilence     = 4 * time.Second
	synSilenceGaps = 3

	// handshakeTimeout bounds the wait for the client's ACK once we accept.
	// gVisor would send its SYN-ACK again for two minutes.
	handshakeTimeout = 10 * time.Second
)

// A tcpForwarder makes a flow of each connection request.
type tcpForwarder struct {
	// Set by newTCPForwarder, then read-only.
	net     *stack.Stack
	gvisor  *tcp.Forwarder
	flows   *census
	handler Handler
	limits  Limits

	ctx context.Context // of the flows; set by Run before the first packet, gVisor has no way to pass it

	mu        sync.Mutex
	pending   map[stack.TransportEndpointID]*TCPFlow // handshake not complete; guarded by mu
	open      map[stack.TransportEndpointID]*TCPFlow // accepted, handler running; guarded by mu
	perSource map[netip.Addr]int                     // of pending; guarded by mu

	count tcpCounters
}

type tcpCounters struct {
	flows, accepted, rejected, gone, failed         atomic.Uint64
	duplicateSYN, reusedTimeWait                    atomic.Uint64
	refusedInFlight, refusedPerSource, refusedFlows atomic.Uint64
}

func newTCPForwarder(s *stack.Stack, flows *census, h Handler, l Limits) *tcpForwarder {
	t := &tcpForwarder{
		net: s, flows: flows, handler: h, limits: l,
		pending:   make(map[stack.TransportEndpointID]*TCPFlow),
		open:      make(map[stack.TransportEndpointID]*TCPFlow),
		perSource: make(map[netip.Addr]int),
	}
	// The limits are ours: gVisor's would count neither sources nor what it
	// drops for them.
	t.gvisor = tcp.NewForwarder(s, defaultBuffer, 1<<30, t.serve)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, t.handlePacket)
	return t
}

// handlePacket is given the segments that belong to no connection. What it
// returns false for is answered with a reset.
func (t *tcpForwarder) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize {
		return false
	}
	switch flags := h.Flags(); {
	case flags.Contains(header.TCPFlagRst):
		t.clientReset(id)
		return true
	case flags.Contains(header.TCPFlagSyn) && !flags.Contains(header.TCPFlagAck):
		return t.handleSYN(id, pkt, h.SequenceNumber())
	}
	return false
}

// handleSYN starts a flow, unless the SYN is one of a flow that is pending, or
// a limit is reached.
func (t *tcpForwarder) handleSYN(id stack.TransportEndpointID, pkt *stack.PacketBuffer, seq uint32) bool {
	f := newTCPFlow(t, id, seq)
	admitted, refuse := t.admit(f)
	if !admitted {
		return !refuse
	}
	if !t.gvisor.HandlePacket(id, pkt) { // a wrong checksum, without vnet header
		t.settle(f, decided)
		t.flows.leave()
		return false
	}
	return true
}

// admit enters f as pending. If it does not, refuse says whether the client is
// to be told; else the SYN is dropped and will be sent again.
func (t *tcpForwarder) admit(f *TCPFlow) (admitted, refuse bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.pending[f.id]; old != nil {
		t.count.duplicateSYN.Add(1)
		old.synLocked(f.isn, f.lastSYN)
		return false, false
	}
	src := f.src.Addr()
	switch {
	case len(t.pending) >= t.limits.TCPInFlight:
		t.count.refusedInFlight.Add(1)
		return false, false
	case t.perSource[src] >= t.limits.TCPInFlightPerSource:
		t.count.refusedPerSource.Add(1)
		return false, false
	case len(t.pending)+len(t.open) >= t.limits.TCPFlows:
		t.count.refusedFlows.Add(1)
		return false, false
	case !t.flows.enter():
		return false, true
	}
	t.count.flows.Add(1)
	t.pending[f.id] = f
	t.perSource[src]++
	return true, false
}

// serve runs on the goroutine that gVisor starts for each request.
func (t *tcpForwarder) serve(req *tcp.ForwarderRequest) {
	defer t.flows.leave()
	id := req.ID()
	t.mu.Lock()
	f := t.pending[id]
	t.mu.Unlock()
	f.req = req
	defer f.end()
	t.handler.ServeTCP(t.ctx, f)
}

// settle moves f out of the pending flows.
func (t *tcpForwarder) settle(f *TCPFlow, state flowState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.state = state
	delete(t.pending, f.id)
	src := f.src.Addr()
	if t.perSource[src]--; t.perSource[src] == 0 {
		delete(t.perSource, src)
	}
	if state == accepted {
		t.open[f.id] = f
	}
}

// forget removes an open flow. Its client may have connected anew from the
// same port meanwhile.
func (t *tcpForwarder) forget(f *TCPFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[f.id] == f {
		delete(t.open, f.id)
	}
}

// clientReset takes a reset for a connection that is not accepted.
func (t *tcpForwarder) clientReset(id stack.TransportEndpointID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.pending[id]; f != nil {
		f.goneLocked()
	}
}

// sweep finds clients that have given up.
func (t *tcpForwarder) sweep(now time.Time) {
	var stuck []stack.TransportEndpointID
	t.mu.Lock()
	for id, f := range t.pending {
		switch {
		case f.state == waiting && now.Sub(f.lastSYN) > f.silenceLocked():
			f.goneLocked()
		case f.state == accepting && now.Sub(f.acceptedAt) > handshakeTimeout:
			stuck = append(stuck, id)
		}
	}
	t.mu.Unlock()
	for _, id := range stuck {
		if ep := t.endpoint(id); ep != nil && ep.EndpointState() == tcp.StateSynRecv {
			ep.Abort()
		}
	}
}

// endpoint returns gVisor's end of a connection, or nil.
func (t *tcpForwarder) endpoint(id stack.TransportEndpointID) *tcp.Endpoint {
	proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	if id.LocalAddress.Len() == header.IPv6AddressSize {
		proto = header.IPv6ProtocolNumber
	}
	ep, _ := t.net.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	return ep
}

// onSYN is called before the stack sees a SYN. The client may take the port of
// a connection that is in TIME_WAIT on our side only (see [timeWait]): it is
// ended here, so that the SYN finds the forwarder. The reset which that sends
// acknowledges nothing of the new connection, so that the client ignores it
// (RFC 9293 section 3.10.7.3).
func (s *Stack) onSYN(_ tcpip.NetworkProtocolNumber, id stack.TransportEndpointID) {
	t := s.tcp
	ep := t.endpoint(id)
	if ep == nil || ep.EndpointState() != tcp.StateTimeWait {
		return
	}
	t.mu.Lock()
	f := t.open[id]
	t.mu.Unlock()
	if f != nil && !f.conn.complete() {
		return // what came last has yet to be read; the client will ask again
	}
	t.count.reusedTimeWait.Add(1)
	ep.Abort()
}
