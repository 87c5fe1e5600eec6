// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how much may be on its way in one direction.
const window = 128 << 10

// A wire joins the two ends of a TCP connection in memory: bounded buffers,
// half-close and resets as the kernel has them. It waits on a sync.Cond alone,
// so that synctest sees when nothing moves.
type wire struct {
	mu   sync.Mutex
	cond *sync.Cond
	end  [2]end
}

// An end is one side: what waits to be read there, and how it has ended.
type end struct {
	in       []byte
	eof      bool // the other side has sent FIN
	reset    bool // the other side has sent RST
	closed   bool // here
	linger0  bool
	onReset  func()
	deadline time.Time
	timer    *time.Timer
}

type memConn struct {
	w  *wire
	me int
	// name and log note what the code under test does to this end.
	name string
	log  *events
}

func newPair(name string, log *events) (app, ours *memConn) {
	w := &wire{}
	w.cond = sync.NewCond(&w.mu)
	return &memConn{w: w, me: 0}, &memConn{w: w, me: 1, name: name, log: log}
}

func (c *memConn) sides() (mine, theirs *end) { return &c.w.end[c.me], &c.w.end[1-c.me] }

func (c *memConn) Read(b []byte) (int, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	me, _ := c.sides()
	for {
		switch {
		case me.closed:
			return 0, net.ErrClosed
		case me.reset:
			return 0, syscall.ECONNRESET
		case len(me.in) > 0:
			n := copy(b, me.in)
			me.in = me.in[n:]
			c.w.cond.Broadcast()
			return n, nil
		case me.eof:
			return 0, io.EOF
		case !me.deadline.IsZero() && !time.Now().Before(me.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		c.w.cond.Wait()
	}
}

func (c *memConn) Write(b []byte) (int, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	me, peer := c.sides()
	sent := 0
	for {
		switch {
		case me.closed || peer.eof:
			return sent, net.ErrClosed
		case me.reset:
			return sent, syscall.ECONNRESET
		case peer.closed: // the other kernel answers RST, and the error is told once, here
			me.eof = true
			c.w.cond.Broadcast()
			return sent, syscall.EPIPE
		}
		n := min(len(b)-sent, window-len(peer.in))
		peer.in = append(peer.in, b[sent:sent+n]...)
		sent += n
		c.w.cond.Broadcast()
		if sent == len(b) {
			return sent, nil
		}
		c.w.cond.Wait()
	}
}

func (c *memConn) note(what string) {
	if c.log != nil {
		c.log.add(c.name + " " + what)
	}
}

func (c *memConn) CloseWrite() error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	me, peer := c.sides()
	if me.closed || me.reset {
		return net.ErrClosed
	}
	c.note("closewrite")
	peer.eof = true
	c.w.cond.Broadcast()
	return nil
}

func (c *memConn) Close() error { return c.close(false) }

func (c *memConn) Abort() { _ = c.close(true) }

func (c *memConn) SetLinger(sec int) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	me, _ := c.sides()
	me.linger0 = sec == 0
	return nil
}

func (c *memConn) close(abort bool) error {
	c.w.mu.Lock()
	me, peer := c.sides()
	if me.closed {
		c.w.mu.Unlock()
		return net.ErrClosed
	}
	me.closed = true
	if me.timer != nil {
		me.timer.Stop()
	}
	peer.eof = true
	var call func()
	if (abort || me.linger0 || len(me.in) > 0) && !peer.closed {
		c.note("abort")
		peer.reset = true
		call = peer.onReset
	} else {
		c.note("close")
	}
	c.w.cond.Broadcast()
	c.w.mu.Unlock()
	if call != nil {
		call()
	}
	return nil
}

func (c *memConn) OnReset(f func()) {
	c.w.mu.Lock()
	me, _ := c.sides()
	me.onReset = f
	late := me.reset
	c.w.mu.Unlock()
	if late && f != nil {
		f()
	}
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	me, _ := c.sides()
	if me.closed {
		return net.ErrClosed
	}
	me.deadline = t
	if me.timer != nil {
		me.timer.Stop()
		me.timer = nil
	}
	if !t.IsZero() {
		me.timer = time.AfterFunc(time.Until(t), c.w.cond.Broadcast)
	}
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(t time.Time) error { return nil }
func (c *memConn) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (c *memConn) RemoteAddr() net.Addr               { return &net.TCPAddr{} }

// events is what happened, in order.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, s)
}

func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.list...)
}
