// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A UDPFlow is a session that a client has begun by a datagram to an address
// which it had not sent to from that port, or not for some time.
type UDPFlow struct {
	u        *udpForwarder
	src, dst netip.AddrPort
	conn     *UDPConn
	dns      *list.Element // its place among the sessions of port 53, or nil; guarded by u.mu

	mu      sync.Mutex
	decided bool                // guarded by mu
	first   *stack.PacketBuffer // what a rejection quotes; guarded by mu, nil once decided
}

func newUDPFlow(u *udpForwarder, id stack.TransportEndpointID) *UDPFlow {
	conn := newUDPConn(u.net, id, &u.count.overflow)
	return &UDPFlow{u: u, src: conn.src, dst: conn.dst, conn: conn}
}

// Source returns the client's address.
func (f *UDPFlow) Source() netip.AddrPort { return f.src }

// Destination returns the address that the client sends to.
func (f *UDPFlow) Destination() netip.AddrPort { return f.dst }

// Accept returns the session as a connection that keeps datagrams apart. The
// first one is there to be read.
func (f *UDPFlow) Accept() (*UDPConn, error) {
	first, undecided := f.decide()
	if !undecided {
		return nil, ErrDecided
	}
	first.DecRef()
	f.u.count.accepted.Add(1)
	return f.conn, nil
}

// Reject tells the client that nobody listens: ICMP port unreachable, which a
// connected socket reports as ECONNREFUSED. So QUIC falls back to TCP at once.
// After a decision it does nothing.
func (f *UDPFlow) Reject() {
	first, undecided := f.decide()
	if !undecided {
		return
	}
	f.u.count.rejected.Add(1)
	// Closed first: a client that answers the error at once begins anew.
	_ = f.conn.Close()
	sendUnreachable(f.u.net, first, portUnreachable)
	first.DecRef()
}

// decide claims the decision, and with it the first packet.
func (f *UDPFlow) decide() (first *stack.PacketBuffer, undecided bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.decided {
		return nil, false
	}
	f.decided = true
	first, f.first = f.first, nil
	return first, true
}

func (f *UDPFlow) end() {
	f.Reject()
	_ = f.conn.Close()
}

func (f *UDPFlow) idleLimit() time.Duration {
	if f.dst.Port() == dnsPort {
		return dnsIdle
	}
	return udpIdle
}
