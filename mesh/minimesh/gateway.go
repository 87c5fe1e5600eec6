// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A gateway is an east-west gateway with AUTO_PASSTHROUGH: it reads the server
// name of a TLS hello, "outbound_.80_._.echo.testing.svc.cluster.local", and
// hands the connection, hello and all, to an endpoint of that service. TLS ends
// there, so clients of two services meet one address and two identities.
type gateway struct {
	mesh *Mesh
	ln   net.Listener
	addr netip.AddrPort
	turn atomic.Uint64 // round robin

	mu     sync.Mutex
	conns  map[net.Conn]bool // of which the hello is awaited
	closed bool
}

func (m *Mesh) openGateway() (*gateway, error) {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(m.cfg.Listen.Addr(), 0).String())
	if err != nil {
		return nil, fmt.Errorf("listen for gateway: %w", err)
	}
	g := &gateway{mesh: m, ln: ln, addr: addrPort(ln.Addr()), conns: map[net.Conn]bool{}}
	m.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			m.wg.Go(func() { g.serve(c) })
		}
	})
	return g, nil
}

func (g *gateway) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.ln.Close()
	for c := range g.conns {
		c.Close()
	}
}

// waiting notes a connection whose hello is awaited, or no longer.
func (g *gateway) waiting(c net.Conn, on bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if on && !g.closed {
		g.conns[c] = true
	} else {
		delete(g.conns, c)
	}
	return !g.closed
}

func (g *gateway) serve(c net.Conn) {
	if !g.waiting(c, true) {
		c.Close()
		return
	}
	name, seen, err := serverName(c)
	g.waiting(c, false)
	p := g.mesh.behind(name, g.turn.Add(1))
	if err != nil || p == nil {
		g.mesh.logger.Debug("gateway: no cluster", "sni", name, "err", err)
		c.Close()
		return
	}
	p.take(&replayed{Conn: c, r: io.MultiReader(bytes.NewReader(seen), c)})
}

var errSeen = errors.New("seen enough")

// serverName reads a TLS hello and returns its server name and its bytes.
func serverName(c net.Conn) (name string, seen []byte, err error) {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return "", nil, err
	}
	var b bytes.Buffer
	err = tls.Server(&listening{Conn: c, r: io.TeeReader(c, &b)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name = h.ServerName
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) {
		return "", nil, fmt.Errorf("read hello: %w", err)
	}
	return name, b.Bytes(), c.SetDeadline(time.Time{})
}

// behind finds the endpoint port for a server name; nil: no such service, or
// nothing of it is meshed and healthy.
func (m *Mesh) behind(name string, turn uint64) *portServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.services {
		s := d.placed()
		for _, p := range s.Ports {
			if sni(&s, p) != name || !s.meshed() {
				continue
			}
			var found []*portServer
			for _, e := range s.Endpoints {
				if w := d.workloads[e.Name]; w != nil && !e.Unhealthy {
					for _, ps := range w.ports {
						if ps.port.Number == p.Number {
							found = append(found, ps)
						}
					}
				}
			}
			if len(found) > 0 {
				return found[turn%uint64(len(found))]
			}
		}
	}
	return nil
}

// listening reads and never writes: the alert of the aborted handshake is not
// the client's to see.
type listening struct {
	net.Conn
	r io.Reader
}

// Read implements net.Conn.
func (l *listening) Read(b []byte) (int, error) { return l.r.Read(b) }

// Write implements net.Conn.
func (l *listening) Write(b []byte) (int, error) { return len(b), nil }

// Close implements net.Conn.
func (l *listening) Close() error { return nil }

// replayed gives back what was read before.
type replayed struct {
	net.Conn
	r io.Reader
}

// Read implements net.Conn.
func (r *replayed) Read(b []byte) (int, error) { return r.r.Read(b) }

// CloseWrite ends this side of the stream.
func (r *replayed) CloseWrite() error { return r.Conn.(*net.TCPConn).CloseWrite() }

// SetLinger is the socket's.
func (r *replayed) SetLinger(sec int) error { return r.Conn.(*net.TCPConn).SetLinger(sec) }
