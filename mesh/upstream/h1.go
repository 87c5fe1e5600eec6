// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"errors"
	"math"
	"sync"
	"syscall"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// readBuffer holds a response's head. Bodies are read past it.
const readBuffer = 4 << 10

// ErrHeadTooLarge is what reading beyond [H1.LimitHead] returns.
var ErrHeadTooLarge = errors.New("head is too large")

// An H1 is an HTTP/1 connection that serves one exchange at a time. Its user
// owns it until Put or Discard.
type H1 struct {
	*Conn
	// R reads what the endpoint sends.
	R *bufio.Reader
	// Reused tells that the connection served an exchange before: it may have
	// been closed by the endpoint while the request was on its way.
	Reused bool

	m           *Manager
	pool        *pool
	limit       limited
	peek        *peek     // nil: cannot be asked whether it is alive
	since       time.Time // idle since
	idleTimeout time.Duration
	served      uint32
	maxServed   uint32 // 0: no bound
}

// readers saves the buffers of connections that serve one exchange only.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

func newH1(m *Manager, p *pool, c *Conn, cfg *resource.Cluster) *H1 {
	h := &H1{Conn: c, m: m, pool: p, maxServed: cfg.MaxRequestsPerConnection, idleTimeout: idleTimeout(cfg)}
	h.limit = limited{c: c, left: math.MaxInt64}
	h.R = readers.Get().(*bufio.Reader)
	h.R.Reset(&h.limit)
	if s, ok := c.socket.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			h.peek = newPeek(raw)
		}
	}
	return h
}

// LimitHead bounds what may be read from now on, until it is called with 0.
// What R holds already counts as read.
func (h *H1) LimitHead(n int64) {
	if n == 0 {
		n = math.MaxInt64
	}
	h.limit.left = n
}

// Put ends the lease of a connection whose exchange is over and whole on both
// sides. Nothing of the next response may have been read.
func (h *H1) Put() {
	h.pool.limits.freeRequest()
	h.served++
	h.Reused = true
	if h.maxServed != 0 && h.served >= h.maxServed || h.R.Buffered() > 0 || h.closed.Load() || !h.m.keep(h) {
		h.closeIdle()
	}
}

// Discard ends the lease and the connection.
func (h *H1) Discard() {
	h.pool.limits.freeRequest()
	h.closeIdle()
}

// closeIdle closes a connection that nobody uses.
func (h *H1) closeIdle() {
	_ = h.Conn.Close() // nothing was in flight that an error could concern
	h.R.Reset(nil)
	readers.Put(h.R)
	h.R = nil
}

// alive asks the socket whether the endpoint has closed the connection, or
// sent what nobody asked for, while it lay idle.
func (h *H1) alive() bool { return h.peek == nil || h.peek.quiet() }

// limited reads from a connection up to a limit.
type limited struct {
	c    *Conn
	left int64
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, ErrHeadTooLarge
	}
	if int64(len(b)) > l.left {
		b = b[:l.left]
	}
	n, err := l.c.Read(b)
	l.left -= int64(n)
	return n, err
}
