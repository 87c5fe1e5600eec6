// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"container/list"
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// udpIdle is how long a session lives without a datagram either way. A
	// shorter time than two minutes breaks applications (RFC 4787 REQ-5).
	udpIdle = 2 * time.Minute

	// dnsIdle is the same for port 53. A resolver that takes a new port for
	// each query never uses it again, and repeats a query after 5 s at most.
	dnsIdle = 5 * time.Second
	dnsPort = 53

	// dnsSearched is how many sessions of port 53 are looked at, from the
	// oldest on, for one to end in the place of a new one. Those that are not
	// answered are few, or there is nothing to be gained.
	dnsSearched = 64
)

// A udpForwarder makes a session of the datagrams between two addresses.
type udpForwarder struct {
	// Set by newUDPForwarder, then read-only.
	net     *stack.Stack
	flows   *census
	handler Handler
	limits  Limits

	ctx context.Context // of the sessions; set by Run before the first packet

	mu        sync.Mutex
	sessions  map[*UDPFlow]struct{} // guarded by mu
	perSource map[netip.Addr]int    // guarded by mu
	dns       *list.List            // those of port 53, the oldest first; guarded by mu

	count udpCounters
}

type udpCounters struct {
	sessions, accepted, rejected, idle, evicted  atomic.Uint64
	refusedSessions, refusedPerSource, malformed atomic.Uint64
	overflow                                     atomic.Uint64
}

func newUDPForwarder(s *stack.Stack, flows *census, h Handler, l Limits) *udpForwarder {
	u := &udpForwarder{
		net: s, flows: flows, handler: h, limits: l,
		sessions:  make(map[*UDPFlow]struct{}),
		perSource: make(map[netip.Addr]int),
		dns:       list.New(),
	}
	s.SetTransportProtocolHandler(udp.ProtocolNumber, u.handlePacket)
	return u
}

// handlePacket is given the datagrams that belong to no session. What it
// returns false for is answered with port unreachable.
func (u *udpForwarder) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if pkt.NetworkPacketInfo.LocalAddressBroadcast || header.IsV4MulticastAddress(id.LocalAddress) ||
		header.IsV6MulticastAddress(id.LocalAddress) {
		return true // for everybody, so not for us; nor may it be answered
	}
	if !validDatagram(pkt) {
		u.count.malformed.Add(1)
		return true
	}
	f := newUDPFlow(u, id)
	admitted, refuse := u.admit(f)
	if !admitted {
		return !refuse
	}
	// The session takes datagrams before the next packet is read, so that they
	// keep their order and none is lost while the handler decides.
	if err := f.conn.register(); err != nil {
		u.remove(f)
		u.flows.leave()
		return true
	}
	(*udpEndpoint)(f.conn).HandlePacket(id, pkt)
	f.first = pkt.Clone()
	u.flows.wg.Go(func() { u.serve(f) })
	return true
}

// validDatagram verifies length and checksum: garbage begins no session.
func validDatagram(pkt *stack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	if len(h) < header.UDPMinimumSize {
		return false
	}
	ip := pkt.Network()
	length, sum := header.UDPValid(h, func() uint16 { return pkt.Data().Checksum() }, uint16(pkt.Data().Size()),
		pkt.NetworkProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), pkt.RXChecksumValidated)
	return length && sum
}

func (u *udpForwarder) admit(f *UDPFlow) (admitted, refuse bool) {
	over := u.evict(f.src.Addr())
	if over != nil {
		_ = over.conn.Close() // ends its handler
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	src := f.src.Addr()
	switch {
	case len(u.sessions) >= u.limits.UDPSessions:
		u.count.refusedSessions.Add(1)
		return false, false
	case u.perSource[src] >= u.limits.UDPSessionsPerSource:
		u.count.refusedPerSource.Add(1)
		return false, false
	case !u.flows.enter():
		return false, true
	}
	u.count.sessions.Add(1)
	u.sessions[f] = struct{}{}
	u.perSource[src]++
	if f.dst.Port() == dnsPort {
		f.dns = u.dns.PushBack(f)
	}
	return true, false
}

// evict takes out a session if there is no room for one more of src: one whose
// questions are all answered, which its client will hardly use again. Without
// that a program that looks a name up for each of its requests, with a new port
// each time, would have no names for dnsIdle after some thousand requests.
func (u *udpForwarder) evict(src netip.Addr) *UDPFlow {
	u.mu.Lock()
	defer u.mu.Unlock()
	ofSource := u.perSource[src] >= u.limits.UDPSessionsPerSource
	if !ofSource && len(u.sessions) < u.limits.UDPSessions {
		return nil
	}
	e := u.dns.Front()
	for n := 0; e != nil && n < dnsSearched; n++ {
		f := e.Value.(*UDPFlow)
		if f.conn.answered() && (!ofSource || f.src.Addr() == src) {
			u.removeLocked(f)
			u.count.evicted.Add(1)
			return f
		}
		e = e.Next()
	}
	return nil
}

func (u *udpForwarder) serve(f *UDPFlow) {
	defer u.flows.leave()
	defer u.remove(f)
	defer f.end()
	u.handler.ServeUDP(u.ctx, f)
}

func (u *udpForwarder) remove(f *UDPFlow) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.removeLocked(f)
}

func (u *udpForwarder) removeLocked(f *UDPFlow) {
	if _, there := u.sessions[f]; !there {
		return // evicted before
	}
	delete(u.sessions, f)
	if f.dns != nil {
		u.dns.Remove(f.dns)
	}
	src := f.src.Addr()
	if u.perSource[src]--; u.perSource[src] == 0 {
		delete(u.perSource, src)
	}
}

// sweep ends the sessions that are idle.
func (u *udpForwarder) sweep(now time.Time) {
	var idle []*UDPFlow
	u.mu.Lock()
	for f := range u.sessions {
		if now.Sub(f.conn.lastUsed()) > f.idleLimit() {
			idle = append(idle, f)
		}
	}
	u.mu.Unlock()
	for _, f := range idle {
		u.count.idle.Add(1)
		f.conn.expire()
	}
}
