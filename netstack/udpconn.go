// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxQueued and maxQueuedBytes bound what a session holds for a handler
	// that does not read. gVisor's own endpoint counts bytes of payload alone,
	// so that empty datagrams would queue without end.
	maxQueued      = 512
	maxQueuedBytes = 256 << 10
)

// A UDPConn is an accepted session. Each Read returns one datagram of the
// client, cut off where the buffer ends, and each Write sends one to it.
//
// Read returns [io.EOF] when the session has been idle for too long. The
// client's port unreachable is [syscall.ECONNREFUSED], once.
type UDPConn struct {
	// Set before the flow is handed out, then read-only.
	net      *stack.Stack
	id       stack.TransportEndpointID
	src, dst netip.AddrPort
	began    time.Time
	overflow *atomic.Uint64 // counts datagrams that found the queue full

	mu      sync.Mutex
	queue   []*stack.PacketBuffer // guarded by mu
	bytes   int                   // in queue; guarded by mu
	failure error                 // what the next call returns; guarded by mu

	writeMu sync.Mutex
	route   *stack.Route // guarded by writeMu, nil once closed

	readDeadline, writeDeadline deadline

	used    atomic.Int64 // nanoseconds from began to the last datagram
	asked   atomic.Int64 // datagrams of the client
	told    atomic.Int64 // datagrams to the client
	expired atomic.Bool
	closed  atomic.Bool
}

func newUDPConn(s *stack.Stack, id stack.TransportEndpointID, overflow *atomic.Uint64) *UDPConn {
	c := &UDPConn{net: s, id: id, began: time.Now(), overflow: overflow}
	c.src, c.dst = endpoints(id)
	c.readDeadline.wake = make(chan struct{}, 1)
	c.writeDeadline.wake = make(chan struct{}, 1)
	return c
}

// register makes the stack deliver the session's datagrams here.
func (c *UDPConn) register() tcpip.Error {
	route, err := c.net.FindRoute(nicID, c.id.LocalAddress, c.id.RemoteAddress, c.protocol(), false)
	if err != nil {
		return err
	}
	c.route = route
	if err := c.net.RegisterTransportEndpoint(c.protocols(), header.UDPProtocolNumber, c.id, (*udpEndpoint)(c), ports.Flags{}, 0); err != nil {
		route.Release()
		return err
	}
	return nil
}

func (c *UDPConn) protocol() tcpip.NetworkProtocolNumber { return c.protocols()[0] }

func (c *UDPConn) protocols() []tcpip.NetworkProtocolNumber {
	if c.dst.Addr().Is4() {
		return []tcpip.NetworkProtocolNumber{header.IPv4ProtocolNumber}
	}
	return []tcpip.NetworkProtocolNumber{header.IPv6ProtocolNumber}
}

// udpEndpoint is the side of a UDPConn that gVisor calls.
type udpEndpoint UDPConn

var _ stack.TransportEndpoint = (*udpEndpoint)(nil)

// HandlePacket implements [stack.TransportEndpoint]: it queues a datagram.
func (e *udpEndpoint) HandlePacket(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	if !validDatagram(pkt) {
		return
	}
	pkt.Data().CapLength(int(header.UDP(pkt.TransportHeader().Slice()).Length()) - header.UDPMinimumSize)
	size := pkt.Data().Size()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return
	}
	if len(e.queue) >= maxQueued || len(e.queue) > 0 && e.bytes+size > maxQueuedBytes {
		e.overflow.Add(1)
		return
	}
	e.asked.Add(1)
	e.queue = append(e.queue, pkt.IncRef())
	e.bytes += size
	signal(e.readDeadline.wake)
}

// HandleError implements [stack.TransportEndpoint].
func (e *udpEndpoint) HandleError(err stack.TransportError, _ *stack.PacketBuffer) {
	if err.Kind() != stack.DestinationPortUnreachableTransportError {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failure = syscall.ECONNREFUSED
	signal(e.readDeadline.wake)
}

// Abort implements [stack.TransportEndpoint].
func (e *udpEndpoint) Abort() { _ = (*UDPConn)(e).Close() }

// Wait implements [stack.TransportEndpoint].
func (e *udpEndpoint) Wait() {}

// Read implements [net.Conn].
func (c *UDPConn) Read(b []byte) (int, error) {
	for {
		switch {
		case c.closed.Load():
			return 0, c.opError("read", net.ErrClosed)
		case c.readDeadline.passed.Load():
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		}
		pkt, err := c.next()
		switch {
		case err != nil:
			return 0, c.opError("read", err)
		case pkt != nil:
			c.touch()
			into := tcpip.SliceWriter(b)
			n, _ := pkt.Data().ReadTo(&into, false) // the error says that b was too short
			pkt.DecRef()
			return n, nil
		case c.expired.Load():
			return 0, io.EOF
		}
		<-c.readDeadline.wake
	}
}

// next takes a datagram or an error that has come in, if there is one.
func (c *UDPConn) next() (*stack.PacketBuffer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.failure; err != nil {
		c.failure = nil
		return nil, err
	}
	if len(c.queue) == 0 {
		return nil, nil
	}
	pkt := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	c.bytes -= pkt.Data().Size()
	if len(c.queue) == 0 {
		c.queue = nil // the array's beginning is used up
	} else {
		signal(c.readDeadline.wake) // for a reader beside this one
	}
	return pkt, nil
}

// Write implements [net.Conn]. It does not block: a datagram for which there
// is no room is lost, which is an error of [syscall.ENOBUFS].
func (c *UDPConn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	switch {
	case c.route == nil:
		return 0, c.opError("write", net.ErrClosed)
	case c.writeDeadline.passed.Load():
		return 0, c.opError("write", os.ErrDeadlineExceeded)
	case len(b) > c.maxPayload():
		return 0, c.opError("write", syscall.EMSGSIZE)
	}
	if err := c.send(b); err != nil {
		return 0, c.opError("write", toError(err))
	}
	c.told.Add(1)
	c.touch()
	return len(b), nil
}

// answered reports whether the client has got as many datagrams as it sent.
func (c *UDPConn) answered() bool {
	asked := c.asked.Load()
	return asked > 0 && c.told.Load() >= asked
}

func (c *UDPConn) maxPayload() int {
	const maxLength = 65535
	if c.dst.Addr().Is4() {
		return maxLength - header.IPv4MinimumSize - header.UDPMinimumSize
	}
	return maxLength - header.UDPMinimumSize
}

// send is called with writeMu held.
func (c *UDPConn) send(b []byte) tcpip.Error {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(c.route.MaxHeaderLength()) + header.UDPMinimumSize,
		Payload:            buffer.MakeWithData(b),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	size := uint16(header.UDPMinimumSize + len(b))
	h.Encode(&header.UDPFields{SrcPort: c.id.LocalPort, DstPort: c.id.RemotePort, Length: size})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, c.id.LocalAddress, c.id.RemoteAddress, size)
	sum = ^h.CalculateChecksum(checksum.Combine(sum, pkt.Data().Checksum()))
	if sum == 0 {
		sum = 0xffff // zero would mean that there is none (RFC 768)
	}
	h.SetChecksum(sum)
	return c.route.WritePacket(stack.NetworkHeaderParams{
		Protocol: header.UDPProtocolNumber, TTL: c.route.DefaultTTL(), TOS: stack.DefaultTOS,
	}, pkt)
}

func (c *UDPConn) touch() {
	c.used.Store(int64(time.Since(c.began)))
	c.expired.Store(false) // a datagram that came at the last moment
}

func (c *UDPConn) lastUsed() time.Time { return c.began.Add(time.Duration(c.used.Load())) }

// expire makes Read return io.EOF once what is queued has been read.
func (c *UDPConn) expire() {
	c.expired.Store(true)
	signal(c.readDeadline.wake)
}

// Close ends the session. A further datagram of the client begins a new one.
func (c *UDPConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.net.UnregisterTransportEndpoint(c.protocols(), header.UDPProtocolNumber, c.id, (*udpEndpoint)(c), ports.Flags{}, 0)
	c.mu.Lock()
	for _, pkt := range c.queue {
		pkt.DecRef()
	}
	c.queue = nil
	c.mu.Unlock()

	c.writeMu.Lock()
	c.route.Release()
	c.route = nil
	c.writeMu.Unlock()

	c.readDeadline.stop()
	c.writeDeadline.stop()
	signal(c.readDeadline.wake)
	return nil
}

// LocalAddr returns the address that the client sends to.
func (c *UDPConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.dst) }

// RemoteAddr returns the client's address.
func (c *UDPConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.src) }

// SetDeadline implements [net.Conn].
func (c *UDPConn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements [net.Conn].
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (c *UDPConn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return nil
}

func (c *UDPConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
