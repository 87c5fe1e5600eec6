// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const (
	// maxIdle bounds the idle connections of all pools: one costs about 30 KB
	// here. There is no bound for an endpoint, which took as many at once: a
	// smaller one costs each request of a large burst a handshake.
	maxIdle = 4096
	// defaultIdleTimeout serves clusters without one. Envoy's is 1 h, but a
	// laptop sleeps and roams, and NATs forget an idle flow in minutes.
	defaultIdleTimeout = time.Minute
)

func idleTimeout(c *resource.Cluster) time.Duration {
	if c.IdleTimeout > 0 {
		return c.IdleTimeout
	}
	return defaultIdleTimeout
}

// A Version is a version of HTTP towards the endpoint.
type Version uint8

// The versions. Auto lets ALPN decide and is HTTP/1 in clear text.
const (
	HTTP1 Version = iota
	HTTP2
	Auto
)

// A poolKey is all that must agree for two exchanges to share a connection.
type poolKey struct {
	cluster string
	address netip.AddrPort
	kind    resource.TransportKind
	version Version
	istio   bool // the filter istio.alpn applies
	outside bool // dialled by Target.Dial
	sni     string
	sans    string
	serial  string // own certificate, which fixes the identity too
}

// A pool holds the connections of one key. Manager.mu guards idle; mu guards
// the rest.
type pool struct {
	key    poolKey
	limits *limits
	idle   []*H1 // the last one used is the next one taken

	mu     sync.Mutex
	shared []*h2conn
	// opening is the dial of a shared connection. There is one at a time: the
	// others wait for its streams.
	opening *dial
	// draining pools are out of the map; their connections end with their
	// last stream.
	draining bool
	spoken   Version // of an Auto pool: what ALPN settled on; Auto: not known
}

// keyFor returns the key of a target. The serial is that of the certificate in
// force; a mutual-TLS pool of another one is never found again.
func (m *Manager) keyFor(t *Target, tr *resource.Transport, v Version, istio bool) poolKey {
	k := poolKey{
		cluster: t.Cluster.Name, address: t.Address(), kind: tr.Kind,
		version: v, outside: t.Dial != nil,
	}
	if tr.Kind != resource.IstioMTLS {
		return k
	}
	k.istio = istio && t.Cluster.Istio.ALPNOverride != "false"
	k.sni, k.sans = tr.SNI, sansKey(tr.SANs)
	if m.cfg.Identity != nil {
		if c := m.cfg.Identity.Current(); c != nil {
			k.serial = c.Serial
		}
	}
	return k
}

// sansKey spells out a set of accepted names. The usual one needs no memory.
func sansKey(want []resource.SANMatch) string {
	switch {
	case len(want) == 0:
		return ""
	case len(want) == 1 && want[0].Exact != "":
		return want[0].Exact
	}
	var b strings.Builder
	for _, w := range want {
		b.WriteString(w.Exact + "\x00" + w.Prefix + "\x00" + w.Suffix + "\x01")
	}
	return b.String()
}

// pool returns the pool of a key. The first use of a new certificate ends the
// pools of the old one.
func (m *Manager) pool(k poolKey) *pool {
	m.mu.Lock()
	var drop []*H1
	var leave []*pool
	if k.serial != "" && k.serial != m.serial {
		m.serial = k.serial
		drop, leave = m.retireLocked()
	}
	p := m.pools[k]
	if p == nil {
		p = &pool{key: k, limits: m.limitsLocked(k.cluster), spoken: k.version}
		m.pools[k] = p
		m.stats.pools.Add(1)
	}
	m.mu.Unlock()
	m.end(drop, leave)
	return p
}

// retireLocked takes out the pools whose certificate was replaced.
func (m *Manager) retireLocked() (drop []*H1, leave []*pool) {
	for k, p := range m.pools {
		if k.kind != resource.IstioMTLS || k.serial == m.serial {
			continue
		}
		drop = append(drop, p.idle...)
		leave = append(leave, p)
		m.forgetLocked(p)
	}
	m.stats.retired.Add(int64(len(drop)))
	return drop, leave
}

// forgetLocked takes a pool out of the map. Connections of it that are in use
// are not kept when they come back.
func (m *Manager) forgetLocked(p *pool) {
	m.stats.idle.Add(-int64(len(p.idle)))
	p.idle = nil
	delete(m.pools, p.key)
	m.stats.pools.Add(-1)
}

func (m *Manager) end(drop []*H1, leave []*pool) {
	for _, h := range drop {
		h.closeIdle()
	}
	for _, p := range leave {
		p.drain(false)
	}
}

// reap ends what has been idle for too long and forgets empty pools.
func (m *Manager) reap() {
	now := time.Now()
	if m.cfg.Identity != nil {
		if c := m.cfg.Identity.Current(); c != nil {
			m.pool(poolKey{kind: resource.IstioMTLS, serial: c.Serial}) // retires the others; forgotten below
		}
	}
	m.mu.Lock()
	var drop []*H1
	var shared []*h2conn
	var leave []*pool
	for _, p := range m.pools {
		n := 0
		for n < len(p.idle) && now.Sub(p.idle[n].since) > p.idle[n].idleTimeout {
			n++
		}
		drop = append(drop, p.idle[:n]...)
		p.idle = p.idle[n:]
		m.stats.idle.Add(-int64(n))
		idle, empty := p.reapShared(now)
		shared = append(shared, idle...)
		if empty && len(p.idle) == 0 {
			leave = append(leave, p)
			m.forgetLocked(p)
		}
	}
	m.mu.Unlock()
	for _, h := range shared {
		h.end()
	}
	m.end(drop, leave)
}

// close ends everything that is kept, and keeps nothing from now on.
func (m *Manager) close() {
	m.mu.Lock()
	m.closed = true
	var drop []*H1
	var leave []*pool
	for _, p := range m.pools {
		drop = append(drop, p.idle...)
		leave = append(leave, p)
		m.forgetLocked(p)
	}
	m.mu.Unlock()
	for _, h := range drop {
		h.closeIdle()
	}
	for _, p := range leave {
		p.drain(true)
	}
}

// takeIdle returns the connection used last that is still alive, or nil.
func (m *Manager) takeIdle(p *pool) *H1 {
	now := time.Now()
	for {
		m.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			m.mu.Unlock()
			return nil
		}
		h := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		m.mu.Unlock()
		m.stats.idle.Add(-1)
		if now.Sub(h.since) <= h.idleTimeout && h.alive() {
			m.stats.reused.Add(1)
			return h
		}
		m.stats.stale.Add(1)
		h.closeIdle()
	}
}

// keep takes a connection back. It reports false if there is no room for it,
// or its pool is gone.
func (m *Manager) keep(h *H1) bool {
	m.mu.Lock()
	p := h.pool
	if m.closed || m.pools[p.key] != p || m.stats.idle.Load() >= maxIdle {
		m.mu.Unlock()
		m.stats.evicted.Add(1)
		return false
	}
	h.since = time.Now()
	p.idle = append(p.idle, h)
	m.stats.idle.Add(1)
	m.mu.Unlock()
	p.limits.wake()
	return true
}

// evict ends one idle connection of a cluster that has reached its limit, so
// that idle ones of one endpoint do not bar the way to another.
func (m *Manager) evict(cluster string) bool {
	m.mu.Lock()
	var h *H1
	for k, p := range m.pools {
		if k.cluster == cluster && len(p.idle) > 0 {
			h = p.idle[0]
			p.idle = p.idle[1:]
			m.stats.idle.Add(-1)
			break
		}
	}
	m.mu.Unlock()
	if h == nil {
		return false
	}
	m.stats.evicted.Add(1)
	h.closeIdle()
	return true
}
