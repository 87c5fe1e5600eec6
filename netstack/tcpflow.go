// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A flowState is how far the decision about a flow has come.
type flowState uint8

const (
	waiting   flowState = iota // for the handler's decision
	accepting                  // for the client's ACK
	accepted
	decided // rejected, or the handshake failed
)

// A TCPFlow is a connection that a client has asked for and that is not
// accepted yet. The client waits until the handler decides.
type TCPFlow struct {
	t        *tcpForwarder
	id       stack.TransportEndpointID
	src, dst netip.AddrPort
	isn      uint32
	done     chan struct{} // closed by goneLocked

	req  *tcp.ForwarderRequest // set before the handler runs
	conn *TCPConn              // set by Accept

	// Guarded by t.mu.
	state      flowState
	gone       bool
	lastSYN    time.Time
	gap        time.Duration // between the last two SYNs
	acceptedAt time.Time
}

func newTCPFlow(t *tcpForwarder, id stack.TransportEndpointID, isn uint32) *TCPFlow {
	src, dst := endpoints(id)
	return &TCPFlow{t: t, id: id, src: src, dst: dst, isn: isn, done: make(chan struct{}), lastSYN: time.Now()}
}

// Source returns the client's address.
func (f *TCPFlow) Source() netip.AddrPort { return f.src }

// Destination returns the address that the client wants to reach.
func (f *TCPFlow) Destination() netip.AddrPort { return f.dst }

// Done returns a channel that is closed when the client gives up before the
// flow is accepted: it has sent a reset, has begun another connection from the
// same port, or has not repeated its SYN for so long that its kernel must have
// forgotten it. The last takes seconds, since a client's kernel does not say
// that a program has closed a socket which was connecting.
func (f *TCPFlow) Done() <-chan struct{} { return f.done }

// Accept completes the handshake and returns the connection. It blocks until
// the client acknowledges, for one round trip in general. An error means that
// the client went away, and the flow is over.
func (f *TCPFlow) Accept() (*TCPConn, error) {
	if err := f.begin(); err != nil {
		return nil, err
	}
	c := newTCPConn(f.src, f.dst)
	ep, terr := f.req.CreateEndpoint(&c.queue)
	f.req.Complete(false)
	if terr != nil {
		f.t.count.failed.Add(1)
		f.t.settle(f, decided)
		return nil, &net.OpError{Op: "accept", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: toError(terr)}
	}
	f.t.count.accepted.Add(1)
	f.conn = c
	f.t.settle(f, accepted)
	c.start(ep, f.t.crowded())
	return c, nil
}

// begin claims the decision for Accept.
func (f *TCPFlow) begin() error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	switch {
	case f.state != waiting:
		return ErrDecided
	case f.gone:
		return ErrClientGone
	}
	f.state = accepting
	f.acceptedAt = time.Now()
	return nil
}

// Reject refuses the connection: the client gets a reset, as from a machine on
// which nothing listens. After a decision it does nothing.
func (f *TCPFlow) Reject() {
	f.t.mu.Lock()
	undecided := f.state == waiting
	if undecided {
		f.state = decided
	}
	f.t.mu.Unlock()
	if !undecided {
		return
	}
	f.t.count.rejected.Add(1)
	f.req.Complete(true)
	f.t.settle(f, decided)
}

// end makes sure that the flow is over when its handler has returned: a slot
// that is never given back would be lost for good.
func (f *TCPFlow) end() {
	f.Reject()
	if f.conn != nil {
		_ = f.conn.Close()
		f.t.forget(f)
	}
}

// synLocked takes a further SYN of the same addresses.
func (f *TCPFlow) synLocked(isn uint32, at time.Time) {
	if isn != f.isn { // another connection; the client has forgotten this one
		f.goneLocked()
		return
	}
	f.gap, f.lastSYN = at.Sub(f.lastSYN), at
}

func (f *TCPFlow) silenceLocked() time.Duration {
	return max(synSilence, synSilenceGaps*f.gap)
}

func (f *TCPFlow) goneLocked() {
	if !f.gone && f.state == waiting {
		f.gone = true
		f.t.count.gone.Add(1)
		close(f.done)
	}
}

// crowded reports whether a new connection has to do with small buffers.
func (t *tcpForwarder) crowded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open) > fullBufferFlows
}
