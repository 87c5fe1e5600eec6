// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// Connect opens a connection for the caller alone. TCP and TLS together take
// at most the cluster's connect timeout. The error is an *[Error].
func (m *Manager) Connect(ctx context.Context, t Target) (*Conn, error) {
	tr := t.Transport()
	alpn := t.ALPN
	if alpn == nil {
		alpn = rawALPN(tr.ALPN)
	}
	l := m.limitsOf(t.Cluster)
	if !l.takeConn(t.Cluster.Breakers.MaxConnections) {
		m.stats.overflows.Add(1)
		return nil, overload(t.Cluster, "max_connections", t.Cluster.Breakers.MaxConnections)
	}
	c, err := m.connect(ctx, &t, &tr, alpn)
	if err != nil {
		l.freeConn()
		return nil, err
	}
	c.release = func() { l.freeConn(); m.stats.open.Add(-1) }
	return c, nil
}

// connect does the work of Connect; breakers are the caller's. On success it
// has counted the connection as open.
func (m *Manager) connect(ctx context.Context, t *Target, tr *resource.Transport, alpn []string) (*Conn, error) {
	switch tr.Kind {
	case resource.Plain, resource.IstioMTLS:
	case resource.HBONE:
		return nil, failed(ctx, t, "connect", ReasonUnsupported, errors.New("the endpoint wants HBONE, which is not supported yet"))
	default:
		return nil, failed(ctx, t, "connect", ReasonUnsupported, errors.New("transport "+tr.Name+" is not supported"))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.connectTimeout(), errConnectTimeout)
	defer cancel()

	var cfg *tls.Config
	if tr.Kind == resource.IstioMTLS { // before dialling: without an identity there is no need to
		var err error
		if cfg, err = m.clientTLS(t, tr, alpn); err != nil {
			return nil, failed(ctx, t, "connect", ReasonNoIdentity, err)
		}
	}
	dial := m.cfg.Dial
	if t.Dial != nil {
		dial = t.Dial
	}
	m.stats.dials.Add(1)
	socket, err := dial(ctx, "tcp", t.Address().String())
	if err != nil {
		m.stats.dialErrors.Add(1)
		return nil, failed(ctx, t, "connect", ReasonConnect, err)
	}
	keepAlive(socket, t.Cluster.KeepAlive)
	c := &Conn{Conn: socket, socket: socket, kind: tr.Kind}
	if cfg != nil {
		if err := c.handshake(ctx, cfg); err != nil {
			m.stats.dialErrors.Add(1)
			_ = socket.Close() // the handshake's error is the one to report
			return nil, failed(ctx, t, "tls handshake with", tlsReason(err), err)
		}
	}
	m.stats.open.Add(1)
	c.release = func() { m.stats.open.Add(-1) }
	return c, nil
}

func (c *Conn) handshake(ctx context.Context, cfg *tls.Config) error {
	c.wire = &wire{Conn: c.socket}
	c.tls = tls.Client(c.wire, cfg)
	if err := c.tls.HandshakeContext(ctx); err != nil {
		return err
	}
	cs := c.tls.ConnectionState()
	c.Conn, c.peerID, c.alpn = c.tls, identity.PeerID(&cs), cs.NegotiatedProtocol
	return nil
}

func (m *Manager) clientTLS(t *Target, tr *resource.Transport, alpn []string) (*tls.Config, error) {
	if m.cfg.Identity == nil {
		return nil, identity.ErrNoIdentity
	}
	p := identity.Peer{SNI: tr.SNI, ALPN: alpn, Key: t.Cluster.Name + "|" + t.Address().String()}
	if len(tr.SANs) > 0 {
		p.SANs = matchAny(tr.SANs)
	}
	return m.cfg.Identity.Client(p)
}

func matchAny(want []resource.SANMatch) func(string) bool {
	return func(san string) bool {
		for _, w := range want {
			if w.Matches(san) {
				return true
			}
		}
		return false
	}
}

// keepAlive applies the cluster's TCP keepalive where it has one and the
// socket can.
func keepAlive(c net.Conn, k *resource.KeepAlive) {
	if k == nil {
		return
	}
	if s, ok := c.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		// A socket that cannot is used without: keepalive is a precaution.
		_ = s.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: orSystem(k.Idle), Interval: orSystem(k.Interval), Count: probes(k.Probes)})
	}
}

// orSystem maps an unset value to the one that net takes for "leave as it is".
func orSystem(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

func probes(n int) int {
	if n == 0 {
		return -1
	}
	return n
}
