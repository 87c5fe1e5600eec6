// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxSharedPerPool bounds the connections to one endpoint. A few are
	// enough: each carries as many streams as the endpoint allows.
	maxSharedPerPool = 4
	// Windows as ztunnel has them: a stream fills a fast long path, and no
	// four streams exhaust their connection. They bound memory too.
	streamWindow = 4 << 20
	connWindow   = 16 << 20
	// A connection that is silent for so long is pinged, since a laptop that
	// slept or roamed is not told of lost connections.
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
	// maxResponseHead bounds a response's head, as Envoy's 60 KiB.
	maxResponseHead = 64 << 10
)

// connKey is where newTransport's dialer finds the connection to use.
type connKey struct{}

// newTransport returns the factory of HTTP/2 client connections. It dials
// nothing: [Manager] hands it connections that are open and secured, so that
// to it they are clear text.
func newTransport() *http.Transport {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, ok := ctx.Value(connKey{}).(*Conn)
			if !ok {
				return nil, errors.New("no connection in the context")
			}
			return c, nil
		},
		Protocols:              &p,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHead,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			StrictMaxConcurrentRequests:   true, // at the bound, RoundTrip waits
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
		},
	}
}

// An h2conn is a shared connection. The pool's mu guards its fields.
type h2conn struct {
	*Conn
	cc       *http.ClientConn
	leases   int // streams in use
	capacity int // the most streams that it was seen to carry
	served   uint32
	since    time.Time // of the last lease or its end
	draining bool      // out of the pool: ends with its last lease

	idleTimeout time.Duration
}

// An H2 is the right to one stream of a shared connection.
type H2 struct {
	conn *h2conn
	pool *pool
	once sync.Once
	sent bool
	held bool // a stream is reserved
}

// Conn returns the shared connection, to be looked at only.
func (h *H2) Conn() *Conn { return h.conn.Conn }

// RoundTrip sends one request and returns once the response's head is there.
// The request's body is closed, possibly after RoundTrip has returned; ending
// the request's context resets the stream.
func (h *H2) RoundTrip(r *http.Request) (*http.Response, error) {
	h.sent = true
	return h.conn.cc.RoundTrip(r)
}

// Done ends the lease; the response's body has been read or closed.
func (h *H2) Done() {
	h.once.Do(func() {
		if h.held && !h.sent {
			h.conn.cc.Release()
		}
		h.pool.limits.freeRequest()
		h.pool.used(h.conn)
	})
}

// Refused reports whether err says that the endpoint did not begin to work on
// a request, so that another one may get it.
func Refused(err error) bool {
	var e http2.StreamError
	return errors.As(err, &e) && e.Code == http2.ErrCodeRefusedStream
}

// A dial is one attempt to open a shared connection.
type dial struct {
	done chan struct{}
	err  error // set before done is closed
}

// http2 takes a stream of a shared connection. The first exchanges of a pool
// wait for one dial and share its failure; on an Auto pool that dial tells
// what the endpoint speaks.
func (o *opening) http2(ctx context.Context) (Lease, error) {
	for {
		h, d, mine := o.p.stream(o.t.Cluster.MaxRequestsPerConnection)
		if h != nil {
			return Lease{H2: h}, nil
		}
		if mine {
			l, err := o.open(ctx)
			o.p.opened(d, err)
			return l, err
		}
		select {
		case <-d.done:
		case <-ctx.Done():
			return Lease{}, failed(ctx, o.t, "wait for a connection to", ReasonClientGone, ctx.Err())
		}
		if d.err != nil && ReasonOf(d.err, "") != ReasonClientGone {
			return Lease{}, d.err
		}
		if o.p.speaks() == HTTP1 {
			h, err := o.http1(ctx)
			return Lease{H1: h}, err
		}
	}
}

// open dials a shared connection and takes its first stream.
func (o *opening) open(ctx context.Context) (Lease, error) {
	if b := &o.t.Cluster.Breakers; !o.p.limits.takeConn(b.MaxConnections) && !o.makeRoom() {
		o.m.stats.overflows.Add(1)
		return Lease{}, overload(o.t.Cluster, "max_connections", b.MaxConnections)
	}
	c, err := o.dial(ctx)
	if err != nil {
		return Lease{}, err
	}
	if o.p.key.version == Auto && !isH2(c.alpn) {
		o.p.settle(HTTP1)
		return Lease{H1: newH1(o.m, o.p, c, o.t.Cluster)}, nil
	}
	cc, err := o.m.h2.NewClientConn(context.WithValue(ctx, connKey{}, c), "http", o.t.Address().String())
	if err != nil {
		c.Abort()
		return Lease{}, failed(ctx, o.t, "start http/2 with", ReasonConnect, err)
	}
	o.p.settle(HTTP2)
	return Lease{H2: o.p.add(&h2conn{Conn: c, cc: cc, idleTimeout: idleTimeout(o.t.Cluster)})}, nil
}

// makeRoom ends an idle connection of the cluster and takes its slot.
func (o *opening) makeRoom() bool {
	return o.m.evict(o.t.Cluster.Name) && o.p.limits.takeConn(o.t.Cluster.Breakers.MaxConnections)
}

func (p *pool) speaks() Version {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoken
}

func (p *pool) settle(v Version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spoken = v
}

// stream returns a stream of the least busy connection. If one more
// connection is needed, it returns the dial to wait for, and whether the caller
// is the one to make it.
func (p *pool) stream(maxServed uint32) (h *H2, d *dial, mine bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best, full := p.leastLocked()
	switch {
	case best != nil && best.cc.Reserve() == nil:
		h = p.leaseLocked(best, true)
		if maxServed != 0 && best.served >= maxServed {
			best.draining = true
		}
		return h, nil, false
	case full != nil && len(p.shared) >= maxSharedPerPool:
		return p.leaseLocked(full, false), nil, false
	case p.opening == nil:
		p.opening = &dial{done: make(chan struct{})}
		mine = true
	}
	return nil, p.opening, mine
}

// leastLocked returns the least busy connection with a stream to give, and one
// that has none now. It drops those that will have none any more: closed,
// going away, or at the end of their service.
func (p *pool) leastLocked() (best, full *h2conn) {
	p.shared = slices.DeleteFunc(p.shared, func(h *h2conn) bool {
		free := h.cc.Available()
		h.capacity = max(h.capacity, h.leases+free)
		switch {
		case h.draining || free == 0 && (h.cc.Err() != nil || h.leases < h.capacity):
			h.draining = true
			if h.leases == 0 {
				h.end()
			}
			return true
		case free == 0:
			full = h
		case best == nil || h.leases < best.leases:
			best = h
		}
		return false
	})
	return best, full
}

func (p *pool) leaseLocked(h *h2conn, held bool) *H2 {
	h.leases++
	h.served++
	h.since = time.Now()
	return &H2{conn: h, pool: p, held: held}
}

// add takes a new connection in and returns its first stream.
func (p *pool) add(h *h2conn) *H2 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared = append(p.shared, h)
	h.draining = p.draining
	return p.leaseLocked(h, h.cc.Reserve() == nil)
}

// opened ends a dial, for those who wait for it.
func (p *pool) opened(d *dial, err error) {
	p.mu.Lock()
	d.err = err
	p.opening = nil
	p.mu.Unlock()
	close(d.done)
}

// used notes the end of a stream.
func (p *pool) used(h *h2conn) {
	p.mu.Lock()
	h.leases--
	h.since = time.Now()
	end := h.draining && h.leases == 0
	p.mu.Unlock()
	if end {
		h.end()
	}
}

// reapShared takes out the idle shared connections, for the caller to end. It
// tells whether none is left nor being dialled.
func (p *pool) reapShared(now time.Time) (drop []*h2conn, empty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared = slices.DeleteFunc(p.shared, func(h *h2conn) bool {
		idle := h.leases == 0 && (h.cc.Err() != nil || now.Sub(h.since) > h.idleTimeout)
		if idle {
			drop = append(drop, h)
		}
		return idle
	})
	return drop, len(p.shared) == 0 && p.opening == nil
}

// drain ends a pool that is out of the map: each connection with its last
// stream, or now if streams are not to be waited for.
func (p *pool) drain(now bool) {
	p.mu.Lock()
	p.draining = true
	var drop []*h2conn
	for _, h := range p.shared {
		h.draining = true
		if now || h.leases == 0 {
			drop = append(drop, h)
		}
	}
	p.mu.Unlock()
	for _, h := range drop {
		h.end()
	}
}

// end closes the connection. Its error concerns nobody: no stream is open, or
// the Manager is ending.
func (h *h2conn) end() { _ = h.cc.Close() }
