// SPDX-License-Identifier: Apache-2.0

// Package upstreamtest holds a network in memory and a certificate authority
// for the tests of the data path. Its connections have what sockets have and
// net.Pipe has not: a buffer, an end of each direction, and resets. They also
// work in a synctest bubble.
package upstreamtest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// buffer bounds what a connection holds in one direction before its writer
// waits, as socket buffers do.
const buffer = 64 << 10

// A Conn is one end of a connection in memory.
type Conn struct {
	in, out       *stream
	peer          *Conn
	local, remote netip.AddrPort

	mu     sync.Mutex
	reset  func()
	linger int
}

// Pipe returns the two ends of a connection.
func Pipe() (a, b *Conn) {
	return pipe(netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("192.0.2.2:80"))
}

func pipe(from, to netip.AddrPort) (a, b *Conn) {
	up, down := newStream(), newStream()
	a = &Conn{in: down, out: up, local: from, remote: to, linger: -1}
	b = &Conn{in: up, out: down, local: to, remote: from, linger: -1}
	a.peer, b.peer = b, a
	return a, b
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) { return c.in.read(b) }

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) { return c.out.write(b) }

// CloseWrite ends the direction towards the peer.
func (c *Conn) CloseWrite() error { c.out.end(); return nil }

// Close implements net.Conn. As a kernel does, it resets the connection if
// what was received was not read.
func (c *Conn) Close() error {
	c.mu.Lock()
	abort := c.linger == 0
	c.mu.Unlock()
	if abort || c.in.unread() {
		c.Abort()
		return nil
	}
	c.out.end()
	c.in.closeRead()
	c.out.closeLocal()
	return nil
}

// Abort resets the connection.
func (c *Conn) Abort() {
	c.in.closeRead()
	c.out.closeLocal()
	c.peer.in.fail(syscall.ECONNRESET)
	c.peer.out.fail(syscall.ECONNRESET)
	c.peer.mu.Lock()
	f := c.peer.reset
	c.peer.reset = nil
	c.peer.mu.Unlock()
	if f != nil {
		f()
	}
}

// OnReset sets what is called when the peer resets the connection.
func (c *Conn) OnReset(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset = f
}

// SetLinger makes Close a reset, with 0.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(t, true)
	c.out.setDeadline(t, false)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t, true); return nil }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.out.setDeadline(t, false); return nil }

// A stream is one direction.
type stream struct {
	mu      sync.Mutex
	changed *sync.Cond
	b       []byte
	ended   bool // the writer has finished
	deaf    bool // the reader has closed
	failed  error
	gone    bool // the writer has closed
	read_   deadline
	write_  deadline
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func newStream() *stream {
	s := new(stream)
	s.changed = sync.NewCond(&s.mu)
	return s
}

func (s *stream) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.deaf:
			return 0, net.ErrClosed
		case s.read_.passed():
			return 0, os.ErrDeadlineExceeded
		case len(s.b) > 0: // also what came before a reset, as in Linux
			n := copy(b, s.b)
			s.b = s.b[n:]
			s.changed.Broadcast()
			return n, nil
		case s.failed != nil:
			return 0, s.failed
		case s.ended:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

func (s *stream) write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.gone:
			return n, net.ErrClosed
		case s.failed != nil:
			return n, s.failed
		case s.ended:
			return n, syscall.EPIPE
		case s.deaf:
			return n, syscall.ECONNRESET
		case s.write_.passed():
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		}
		if room := buffer - len(s.b); room > 0 {
			m := min(room, len(b)-n)
			s.b = append(s.b, b[n:n+m]...)
			n += m
			s.changed.Broadcast()
			continue
		}
		s.changed.Wait()
	}
}

func (s *stream) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changed.Broadcast()
}

func (s *stream) end()       { s.set(func() { s.ended = true }) }
func (s *stream) closeRead() { s.set(func() { s.deaf = true }) }

// closeLocal fails further use by the writer, whose end has closed.
func (s *stream) closeLocal() { s.set(func() { s.gone = true }) }

func (s *stream) fail(err error) {
	s.set(func() {
		if s.failed == nil {
			s.failed = err
		}
	})
}

func (s *stream) unread() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.b) > 0
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (s *stream) setDeadline(t time.Time, read bool) {
	s.set(func() {
		d := &s.write_
		if read {
			d = &s.read_
		}
		if d.timer != nil {
			d.timer.Stop()
			d.timer = nil
		}
		d.at = t
		if wait := time.Until(t); !t.IsZero() && wait > 0 {
			d.timer = time.AfterFunc(wait, func() { s.set(func() {}) })
		}
	})
}

// A Net is a network in memory: what listens at which address.
type Net struct {
	mu        sync.Mutex
	listeners map[string]*Listener
	dials     []string
}

// NewNet returns an empty network.
func NewNet() *Net { return &Net{listeners: make(map[string]*Listener)} }

// Listen begins to listen at an address.
func (n *Net) Listen(addr string) *Listener {
	l := &Listener{net: n, addr: netip.MustParseAddrPort(addr), conns: make(chan *Conn, 64), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = l
	return l
}

// Dial connects to what listens at an address. Where nothing does, it is
// refused.
func (n *Net) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.dials = append(n.dials, addr)
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	a, b := pipe(netip.MustParseAddrPort("192.0.2.1:40000"), l.addr)
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Dials returns the addresses dialled so far.
func (n *Net) Dials() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dials...)
}

// A Listener is a net.Listener of a Net.
type Listener struct {
	net   *Net
	addr  netip.AddrPort
	conns chan *Conn
	done  chan struct{}
	once  sync.Once
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, errors.New("listener closed")
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.addr.String())
		l.net.mu.Unlock()
		close(l.done)
	})
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
