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
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A TCPConn is an accepted connection, seen from the service's side: what the
// client sends is read, what is written goes to the client.
//
// It is a [net.Conn] on gVisor's endpoint without the cost of gVisor's own
// adapter: it is registered with the endpoint once for its life, and a read
// that blocks allocates nothing.
//
// Read returns [io.EOF] after the client's FIN and an error that is
// [syscall.ECONNRESET] after its reset, once what came before has been read.
// Write is not bounded in size; up to a superpacket is handed to the device in
// one piece.
type TCPConn struct {
	// Set before the connection is returned, then read-only.
	ep       tcpip.Endpoint
	src, dst netip.AddrPort

	queue waiter.Queue
	entry waiter.Entry // in queue for life

	readMu sync.Mutex
	into   tcpip.SliceWriter // guarded by readMu; here, since ep.Read takes a pointer to it

	writeMu sync.Mutex
	from    bytes.Reader // guarded by writeMu

	readDeadline, writeDeadline deadline

	started     atomic.Bool // ep is set
	closed      atomic.Bool
	writeClosed atomic.Bool
	ended       atomic.Bool // both ways, and all was read
	reset       atomic.Bool // the connection broke, as opposed to ended
	onReset     atomic.Pointer[func()]
	failure     atomic.Pointer[error] // the first hard error: gVisor tells it only once
}

func newTCPConn(src, dst netip.AddrPort) *TCPConn {
	c := &TCPConn{src: src, dst: dst}
	c.readDeadline.wake = make(chan struct{}, 1)
	c.writeDeadline.wake = make(chan struct{}, 1)
	c.entry.Init((*tcpEvents)(c), waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	c.queue.EventRegister(&c.entry)
	return c
}

// start makes the connection ready for use over ep.
func (c *TCPConn) start(ep tcpip.Endpoint, crowded bool) {
	c.ep = ep
	opts := ep.SocketOptions()
	if crowded {
		opts.SetReceiveBufferSize(crowdedBuffer, true)
		opts.SetSendBufferSize(crowdedBuffer, true)
	}
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	opts.SetKeepAlive(true)
	c.started.Store(true)
	c.checkReset() // it may have come before started
}

// tcpEvents is the side of a TCPConn that gVisor calls.
type tcpEvents TCPConn

// NotifyEvent implements [waiter.EventListener]. It runs under the queue's
// lock, and often the endpoint's.
func (e *tcpEvents) NotifyEvent(mask waiter.EventMask) {
	c := (*TCPConn)(e)
	const over = waiter.EventHUp | waiter.EventErr
	if mask&(waiter.ReadableEvents|over) != 0 {
		signal(c.readDeadline.wake)
	}
	if mask&(waiter.WritableEvents|over) != 0 {
		signal(c.writeDeadline.wake)
	}
	if mask&over != 0 {
		c.checkReset()
	}
}

// checkReset tells a reset, or a client that vanished, from an orderly end.
// gVisor raises the same events for both. A reset after the client's FIN it
// treats as a close, which before our own FIN nothing else explains.
func (c *TCPConn) checkReset() {
	if !c.started.Load() || c.closed.Load() || c.ended.Load() {
		return
	}
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateError:
	case tcp.StateClose:
		if c.writeClosed.Load() {
			return
		}
	default:
		return
	}
	c.reset.Store(true)
	c.callOnReset()
}

// complete reports whether a connection in TIME_WAIT has nothing left to be
// read. From then on it reads as ended, whatever becomes of its endpoint.
func (c *TCPConn) complete() bool {
	if n, err := c.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption); err != nil || n > 0 {
		return false
	}
	c.ended.Store(true)
	return true
}

func (c *TCPConn) callOnReset() {
	if f := c.onReset.Swap(nil); f != nil {
		(*f)()
	}
}

// OnReset arranges for f to be called once if the connection breaks: the
// client has sent a reset or is gone. That is at once if it already has. An
// orderly end does not call f, nor does Close or Abort. A further OnReset
// replaces f, and nil takes it away.
//
// f runs inside the network stack, under its locks. It may cancel a context
// or close a channel; it must not block and must not use this connection.
func (c *TCPConn) OnReset(f func()) {
	if f == nil {
		c.onReset.Store(nil)
		return
	}
	c.onReset.Store(&f)
	if c.reset.Load() && !c.closed.Load() {
		c.callOnReset()
	}
}

// Read implements [net.Conn].
func (c *TCPConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
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

// tryRead reads what there is.
func (c *TCPConn) tryRead(b []byte) (int, error) {
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
		c.ep.ModerateRecvBuf(res.Count)
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, errWouldBlock
	case *tcpip.ErrClosedForReceive:
		if tcp.EndpointState(c.ep.State()) != tcp.StateError {
			return 0, io.EOF
		}
	}
	if c.ended.Load() {
		return 0, io.EOF
	}
	return 0, c.opError("read", c.cause(err))
}

// Write implements [net.Conn].
func (c *TCPConn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	written := 0
	for written < len(b) {
		n, err := c.tryWrite(b[written:min(len(b), written+maxSegment)])
		written += n
		if err == errWouldBlock {
			<-c.writeDeadline.wake
			continue
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// tryWrite writes what there is room for.
func (c *TCPConn) tryWrite(b []byte) (int, error) {
	switch {
	case c.closed.Load():
		return 0, c.opError("write", net.ErrClosed)
	case c.writeDeadline.passed.Load():
		return 0, c.opError("write", os.ErrDeadlineExceeded)
	}
	c.from.Reset(b)
	n, err := c.ep.Write(&c.from, tcpip.WriteOptions{})
	c.from.Reset(nil)
	switch err.(type) {
	case nil:
		return int(n), nil
	case *tcpip.ErrWouldBlock:
		return int(n), errWouldBlock
	}
	return int(n), c.opError("write", c.cause(err))
}

// cause returns why the connection broke, also when gVisor has told somebody
// else already.
func (c *TCPConn) cause(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrClosedForReceive, *tcpip.ErrClosedForSend:
		if f := c.failure.Load(); f != nil {
			return *f
		}
		if c.reset.Load() {
			return syscall.ECONNRESET
		}
		return toError(err)
	}
	e := toError(err)
	if tcp.EndpointState(c.ep.State()) == tcp.StateError {
		c.failure.CompareAndSwap(nil, &e)
	}
	return e
}

// CloseWrite sends a FIN after what was written. Reading goes on.
func (c *TCPConn) CloseWrite() error {
	if c.closed.Load() {
		return c.opError("close", net.ErrClosed)
	}
	c.writeClosed.Store(true)
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return c.opError("close", c.cause(err))
	}
	return nil
}

// Close ends the connection in both directions. What was written is still
// sent. If the client has sent what was not read, it gets a reset and not a
// FIN, as from a kernel's socket (RFC 2525 section 2.17): it must not believe
// that its data was taken.
func (c *TCPConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.finish(c.ep.Close)
	return nil
}

// Abort ends the connection with a reset, and drops what was not sent.
func (c *TCPConn) Abort() {
	if c.closed.Swap(true) {
		return
	}
	c.finish(c.ep.Abort)
}

func (c *TCPConn) finish(end func()) {
	c.onReset.Store(nil)
	end()
	c.readDeadline.stop()
	c.writeDeadline.stop()
	signal(c.readDeadline.wake)
	signal(c.writeDeadline.wake)
}

// LocalAddr returns the address that the client connected to.
func (c *TCPConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.dst) }

// RemoteAddr returns the client's address.
func (c *TCPConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.src) }

// SetDeadline implements [net.Conn].
func (c *TCPConn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements [net.Conn].
func (c *TCPConn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (c *TCPConn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return nil
}

func (c *TCPConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
