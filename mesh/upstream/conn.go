// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"

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
// open: close_notify where there is TLS, then FIN.
func (c *Conn) CloseWrite() error {
	if c.tls != nil {
		if err := c.tls.CloseWrite(); err != nil {
			return err
		}
	}
	if s, ok := c.socket.(interface{ CloseWrite() error }); ok {
		return s.CloseWrite()
	}
	return nil
}

// Close closes both directions.
func (c *Conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	err := c.Conn.Close()
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

// wire is a socket that remembers whether its end was seen.
type wire struct {
	net.Conn
	eof atomic.Bool
	now *instant // owned by the reader; nil: reads may wait
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
