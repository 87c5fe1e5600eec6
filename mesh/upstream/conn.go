// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Conn is an established connection to an endpoint; the handshake of its
// transport is over and the peer's identity is proved. As with any net.Conn
// one goroutine may read while another writes, and any may close.
type Conn struct {
	net.Conn // the TLS session, or the socket itself

	socket  net.Conn
	tls     *tls.Conn // nil: clear text
	wire    *wire     // the socket as tls sees it
	kind    resource.TransportKind
	peerID  string
	alpn    string
	closed  atomic.Bool
	instant *instant // owned by the reader; made by ReadNow
	release func()   // gives the cluster's connection slot back; may be nil
}

// Read reads. An end of the stream that TLS did not announce is ErrTruncated:
// crypto/tls itself lets it pass between two records.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF && c.wire != nil && c.wire.eof.Load() {
		err = ErrTruncated
	}
	return n, err
}

// CloseWrite ends the stream towards the peer and leaves the other direction
// open: close_notify where there is TLS, then FIN. Like a Write it waits for a
// peer that does not read.
func (c *Conn) CloseWrite() error {
	if c.tls != nil {
		if err := c.endTLS(); err != nil {
			return err
		}
	}
	if s, ok := c.socket.(interface{ CloseWrite() error }); ok {
		return s.CloseWrite()
	}
	return nil
}

// endTLS sends close_notify. A Close that comes meanwhile ends it: one of the
// two sees what the other has set.
func (c *Conn) endTLS() error {
	c.wire.ending.Store(true)
	defer c.wire.ending.Store(false)
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.tls.CloseWrite()
}

// Close closes both directions.
func (c *Conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	closing := c.Conn.Close
	if c.wire != nil && (c.wire.ending.Load() || c.wire.flushing.Load()) {
		closing = c.socket.Close // TLS would wait for the write under way
	}
	err := closing()
	c.released()
	return err
}

// Abort drops the connection so that the peer sees a reset, never an orderly
// end: no close_notify, RST instead of FIN.
func (c *Conn) Abort() {
	if !c.closed.CompareAndSwap(false, true) {
		return
	}
	if s, ok := c.socket.(interface{ SetLinger(sec int) error }); ok {
		_ = s.SetLinger(0) // the close below counts either way
	}
	_ = c.socket.Close() // nothing is left to report to
	c.released()
}

func (c *Conn) released() {
	if c.release != nil {
		c.release()
	}
}

// PeerID returns the SPIFFE ID that the peer proved; empty in clear text.
func (c *Conn) PeerID() string { return c.peerID }

// Transport returns how the connection is secured.
func (c *Conn) Transport() resource.TransportKind { return c.kind }

// ALPN returns the protocol that was agreed on; empty: none.
func (c *Conn) ALPN() string { return c.alpn }

// NetConn returns the socket. Under TLS it must not be read or written.
func (c *Conn) NetConn() net.Conn { return c.socket }

// TLS returns the TLS session, nil in clear text.
func (c *Conn) TLS() *tls.Conn { return c.tls }

// wire is a socket that remembers whether its end was seen, and gathers the
// records of a large write.
type wire struct {
	net.Conn
	eof      atomic.Bool
	ending   atomic.Bool // a CloseWrite is under way
	flushing atomic.Bool // a write of several records is under way
	now      *instant    // owned by the reader; nil: reads may wait

	mu sync.Mutex // held while a record is written
	// held are the records that wait for others; nil: none are to wait.
	// +checklocks:mu
	held []byte
}

// SetWriteDeadline keeps crypto/tls from giving close_notify up after five
// seconds: a peer that reads on after a minute would never learn of the end.
func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.ending.Load() {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}

func (w *wire) Read(b []byte) (int, error) {
	read := w.Conn.Read
	if w.now != nil {
		read = w.now.read
	}
	n, err := read(b)
	if err == io.EOF {
		w.eof.Store(true)
	}
	return n, err
}
