// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A UDPConn is an accepted session. Each Read returns one datagram of the
// client, cut off where the buffer ends, and each Write sends one to it.
//
// Read returns [io.EOF] when the session has been idle for too long. The
// client's port unreachable is [syscall.ECONNREFUSED].
type UDPConn struct {
	// Set before the flow is handed out, then read-only.
	ep       tcpip.Endpoint
	src, dst netip.AddrPort
	began    time.Time

	queue waiter.Queue
	entry waiter.Entry // in queue for life

	readMu sync.Mutex
	into   tcpip.SliceWriter // guarded by readMu

	writeMu sync.Mutex
	from    bytes.Reader // guarded by writeMu

	readDeadline, writeDeadline deadline

	used    atomic.Int64 // nanoseconds from began to the last datagram
	expired atomic.Bool
	closed  atomic.Bool
}

func newUDPConn(src, dst netip.AddrPort) *UDPConn {
	c := &UDPConn{src: src, dst: dst, began: time.Now()}
	c.readDeadline.wake = make(chan struct{}, 1)
	c.writeDeadline.wake = make(chan struct{}, 1)
	c.entry.Init((*udpEvents)(c), waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr)
	c.queue.EventRegister(&c.entry)
	return c
}

func (c *UDPConn) start(ep tcpip.Endpoint) {
	c.ep = ep
	ep.SocketOptions().SetReceiveBufferSize(udpReceiveBuffer, false)
}

// udpEvents is the side of a UDPConn that gVisor calls.
type udpEvents UDPConn

// NotifyEvent implements [waiter.EventListener].
func (e *udpEvents) NotifyEvent(waiter.EventMask) { signal(e.readDeadline.wake) }

// Read implements [net.Conn].
func (c *UDPConn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		n, err := c.tryRead(b)
		if err != errWouldBlock {
			return n, err
		}
		<-c.readDeadline.wake
	}
}

func (c *UDPConn) tryRead(b []byte) (int, error) {
	switch {
	case c.closed.Load():
		return 0, c.opError("read", net.ErrClosed)
	case c.readDeadline.passed.Load():
		return 0, c.opError("read", os.ErrDeadlineExceeded)
	}
	c.into = b
	res, err := c.ep.Read(&c.into, tcpip.ReadOptions{})
	c.into = nil
	switch err.(type) {
	case nil:
		c.touch()
		return res.Count, nil
	case *tcpip.ErrBadBuffer: // b is empty, or the datagram longer than b
		c.touch()
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		if c.expired.Load() {
			return 0, io.EOF
		}
		return 0, errWouldBlock
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, c.opError("read", toError(err))
}

// Write implements [net.Conn]. It does not block: a datagram for which there
// is no room is lost, which is an error of [syscall.ENOBUFS].
func (c *UDPConn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	switch {
	case c.closed.Load():
		return 0, c.opError("write", net.ErrClosed)
	case c.writeDeadline.passed.Load():
		return 0, c.opError("write", os.ErrDeadlineExceeded)
	}
	c.from.Reset(b)
	n, err := c.ep.Write(&c.from, tcpip.WriteOptions{})
	c.from.Reset(nil)
	if err != nil {
		return 0, c.opError("write", toError(err))
	}
	c.touch()
	return int(n), nil
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
	c.ep.Close()
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
