// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// handshakeTimeout bounds a client that begins TLS and does not go on.
const handshakeTimeout = 15 * time.Second

// A portServer is one port of a workload: the sidecar's inbound listener, and
// the application behind it.
type portServer struct {
	// Set by newPortServer, then read-only.
	w       *workload
	port    Port
	secure  *tls.Config
	http    *http.Server
	handoff *handoff

	addr netip.AddrPort // set by the first listen, then read-only

	mu     sync.Mutex
	ln     net.Listener // nil: connections are refused
	conns  map[*tracked]bool
	closed bool
}

func (w *workload) newPortServer(p Port) *portServer {
	ps := &portServer{w: w, port: p, conns: map[*tracked]bool{}, handoff: newHandoff()}
	ps.secure = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: ps.chain,
		ClientAuth:         tls.RequireAndVerifyClientCert,
		ClientCAs:          w.mesh.authority.pool,
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	ps.http = &http.Server{
		Handler:   w.app(p),
		Protocols: protocols,
		ErrorLog:  slog.NewLogLogger(w.mesh.logger.Handler(), slog.LevelDebug),
	}
	return ps
}

// listen begins to accept. It does nothing when that is so already.
func (p *portServer) listen(addr netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil || p.closed {
		return nil
	}
	ln, err := net.Listen("tcp", addr.String())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	first := !p.addr.IsValid()
	p.addr, p.ln = addrPort(ln.Addr()), ln
	if first {
		p.w.mesh.wg.Go(func() { p.http.Serve(p.handoff) }) // ends with the hand-off
	}
	p.w.mesh.wg.Go(func() { p.accept(ln) })
	return nil
}

// deafen closes the socket; connections live on.
func (p *portServer) deafen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		p.ln.Close()
		p.ln = nil
	}
}

func (p *portServer) close() {
	p.mu.Lock()
	p.closed = true
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	p.deafen()
	p.handoff.Close()
	p.http.Close()
	for c := range conns {
		c.Close()
	}
}

func (p *portServer) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return // closed; nothing else ends the listeners of loopback
		}
		p.take(c)
	}
}

// take serves a connection that has come by itself or through the gateway.
func (p *portServer) take(c net.Conn) {
	t := &tracked{Conn: c, done: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.Close()
		return
	}
	p.conns[t] = true
	p.mu.Unlock()
	p.w.mesh.wg.Go(func() {
		defer func() {
			t.Close()
			p.mu.Lock()
			delete(p.conns, t)
			p.mu.Unlock()
		}()
		p.serve(t)
	})
}

// serve is the life of a connection.
func (p *portServer) serve(t *tracked) {
	fault := p.w.currentFault()
	switch fault {
	case Reset:
		t.reset()
		return
	case Silent:
		<-t.done
		return
	case NoFault, Refuse, Alert, Hangup, Mute:
	}
	c, isHTTP, err := p.decide(t, fault)
	if err != nil {
		p.w.mesh.logger.Debug("connection refused", "endpoint", p.w.name, "port", p.port.Number, "err", err)
		return
	}
	switch fault {
	case Hangup:
		c.Close()
		return
	case Mute:
		<-t.done
		return
	case NoFault, Refuse, Reset, Silent, Alert:
	}
	if !isHTTP {
		p.serveTCP(c)
		return
	}
	if p.handoff.give(c) {
		<-t.done // http.Server closes it
	}
}

// errClearText is what a strict workload says of a client without TLS.
var errClearText = errors.New("clear text where mTLS is demanded")

// decide ends TLS where there is any, and tells HTTP from TCP.
func (p *portServer) decide(t *tracked, fault Fault) (c net.Conn, isHTTP bool, err error) {
	t.alert = fault == Alert
	if p.w.tls != Disabled {
		b, err := t.peek(1)
		if err != nil {
			return nil, false, fmt.Errorf("read first byte: %w", err)
		}
		if b[0] == recordHandshake {
			return p.endTLS(t)
		}
		if p.w.tls == Strict {
			return nil, false, errClearText
		}
	}
	p.w.mesh.accepted(Accept{Service: p.w.host, Endpoint: p.w.name, Port: p.port.Number})
	switch p.port.Protocol {
	case HTTP, GRPC:
		isHTTP = true
	case Auto:
		isHTTP = p.port.App != Banner && t.looksHTTP()
	case TCP:
	}
	return t, isHTTP, nil
}

// recordHandshake is the type of the TLS record that begins a connection.
const recordHandshake = 22

func (p *portServer) endTLS(t *tracked) (net.Conn, bool, error) {
	// The handshake needs a bound, and the mesh's end closes the socket.
	if err := t.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, false, err
	}
	c := tls.Server(t, p.secure)
	if err := c.Handshake(); err != nil {
		return nil, false, fmt.Errorf("handshake: %w", err)
	}
	if err := t.SetDeadline(time.Time{}); err != nil {
		return nil, false, err
	}
	st := c.ConnectionState()
	id, err := leafID(st.PeerCertificates[0], p.w.mesh.cfg.TrustDomain)
	if err != nil {
		return nil, false, err // checked in the handshake already
	}
	p.w.mesh.accepted(Accept{
		Service: p.w.host, Endpoint: p.w.name, Port: p.port.Number,
		Peer: id, SNI: st.ServerName, ALPN: t.offered, Version: st.Version, Resumed: st.DidResume,
	})
	return c, t.http, nil
}

var (
	errAlert   = errors.New("told to fail")
	errForeign = errors.New("no filter chain: TLS without an istio ALPN")

	// httpALPN are the offers that lead to a sidecar's HTTP chain.
	httpALPN = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	// meshALPN are those that tell the mesh's TLS from an application's.
	meshALPN = append([]string{"istio", tcpExchange}, httpALPN...)
)

// chain is the choice of a sidecar's inbound filter chain. It looks at what
// the client offers, not at what would be negotiated. A port with a declared
// protocol has one chain; a sniffed one has two, told apart by Istio's names.
//
// A crypto/tls server fails where the lists of ALPN do not meet and Envoy does
// not, so the list is made to meet or left empty.
func (p *portServer) chain(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	t := hello.Conn.(*tracked)
	if t.alert {
		return nil, errAlert
	}
	t.offered = slices.Clone(hello.SupportedProtos)
	offers := func(names []string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(t.offered, n) })
	}
	if p.w.tls == Permissive && !offers(meshALPN) {
		return nil, errForeign
	}
	switch p.port.Protocol {
	case HTTP, GRPC:
		t.http = true
	case Auto:
		t.http = offers(httpALPN)
	case TCP:
	}
	c := p.secure.Clone()
	c.GetConfigForClient = nil
	c.Certificates = []tls.Certificate{*p.w.cert}
	c.VerifyConnection = func(st tls.ConnectionState) error {
		_, err := leafID(st.PeerCertificates[0], p.w.mesh.cfg.TrustDomain)
		return err
	}
	// A TCP chain could negotiate istio-peer-exchange, after which both ends
	// send metadata; this one does not speak it.
	if t.http {
		for _, name := range []string{"h2", "http/1.1"} {
			if slices.Contains(t.offered, name) {
				c.NextProtos = []string{name}
				break
			}
		}
	}
	return c, nil
}

// A tracked connection knows when it is closed, can be peeked into, and
// carries what the handshake learns.
type tracked struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
	done chan struct{}

	alert   bool
	offered []string
	http    bool
}

// peekSize is enough for the longest method and for the HTTP/2 preface.
const peekSize = 24

func (t *tracked) peek(n int) ([]byte, error) {
	if t.r == nil {
		t.r = bufio.NewReaderSize(t.Conn, peekSize)
	}
	return t.r.Peek(n)
}

// Read implements net.Conn.
func (t *tracked) Read(b []byte) (int, error) {
	if t.r != nil && t.r.Buffered() > 0 {
		return t.r.Read(b)
	}
	return t.Conn.Read(b)
}

// Close implements net.Conn.
func (t *tracked) Close() error {
	err := t.Conn.Close()
	t.once.Do(func() { close(t.done) })
	return err
}

// CloseWrite ends this side of the stream.
func (t *tracked) CloseWrite() error {
	if c, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// reset closes with RST.
func (t *tracked) reset() {
	if c, ok := t.Conn.(interface{ SetLinger(sec int) error }); ok {
		c.SetLinger(0)
	}
	t.Close()
}

// looksHTTP reports whether the stream begins with a method, or with the
// preface of HTTP/2, which does too.
func (t *tracked) looksHTTP() bool {
	b, err := t.peek(1)
	for n := 1; err == nil && n <= len(b); n++ {
		switch c := b[n-1]; {
		case c == ' ':
			return n > 1
		case c < 'A' || c > 'Z':
			return false
		}
		if n == len(b) && n < peekSize {
			b, err = t.peek(n + 1)
		}
	}
	return false
}

// A handoff is the listener of an http.Server that gets its connections from
// elsewhere.
type handoff struct {
	conns  chan net.Conn
	closed chan struct{} // closed by Close
	once   sync.Once
}

func newHandoff() *handoff {
	return &handoff{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give passes a connection on, unless the listener is closed.
func (h *handoff) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return &net.TCPAddr{} }
