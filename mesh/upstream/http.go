// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// An HTTPRequest asks for a connection for one HTTP exchange.
type HTTPRequest struct {
	Target  Target
	Version Version
	// IstioALPN tells that the filter istio.alpn is in the listener's chain.
	IstioALPN bool
	// Fresh asks for an HTTP/1 connection that was not used before, after a
	// pooled one turned out to be dead.
	Fresh bool
}

// A Lease is the right to one exchange. Exactly one of the two is set. It ends
// by [H1.Put] or [H1.Discard], or by [H2.Done].
type Lease struct {
	H1 *H1
	H2 *H2
}

// HTTP returns a connection for one exchange: a pooled one if there is one, or
// a new one within the cluster's connect timeout and breakers. The error is an
// *[Error].
func (m *Manager) HTTP(ctx context.Context, r HTTPRequest) (Lease, error) {
	tr := r.Target.Transport()
	if r.Version == Auto && tr.Kind != resource.IstioMTLS {
		r.Version = HTTP1
	}
	p := m.pool(m.keyFor(&r.Target, &tr, r.Version, r.IstioALPN))
	if most := r.Target.Cluster.Breakers.MaxRequests; !p.limits.takeRequest(most) {
		m.stats.overflows.Add(1)
		return Lease{}, overload(r.Target.Cluster, "max_requests", most)
	}
	if r.Version == HTTP1 && !r.Fresh {
		if h := m.takeIdle(p); h != nil { // the usual way, which needs no memory
			return Lease{H1: h}, nil
		}
	}
	return m.open(ctx, p, r, tr)
}

// open is the rest of HTTP, for when no idle connection was there.
func (m *Manager) open(ctx context.Context, p *pool, r HTTPRequest, tr resource.Transport) (Lease, error) {
	o := opening{m: m, p: p, t: &r.Target, tr: &tr, fresh: r.Fresh}
	l, err := o.lease(ctx)
	if err != nil {
		p.limits.freeRequest()
	}
	return l, err
}

// opening is one call of HTTP.
type opening struct {
	m     *Manager
	p     *pool
	t     *Target
	tr    *resource.Transport
	fresh bool
}

func (o *opening) lease(ctx context.Context) (Lease, error) {
	if o.p.speaks() == HTTP1 {
		h, err := o.http1(ctx)
		return Lease{H1: h}, err
	}
	return o.http2(ctx)
}

// http1 takes the pooled connection used last, or dials. Where the cluster
// bounds its connections, it waits in line for one.
func (o *opening) http1(ctx context.Context) (*H1, error) {
	l, b := o.p.limits, &o.t.Cluster.Breakers
	var ticket chan struct{}
	defer func() {
		if ticket != nil {
			l.leave(ticket)
		}
	}()
	for {
		if !o.fresh {
			if h := o.m.takeIdle(o.p); h != nil {
				return h, nil
			}
		}
		if l.takeConn(b.MaxConnections) {
			return o.dial1(ctx)
		}
		if o.m.evict(o.t.Cluster.Name) {
			continue
		}
		if ticket == nil {
			if ticket = l.enqueue(b.MaxPending); ticket == nil {
				o.m.stats.overflows.Add(1)
				return nil, overload(o.t.Cluster, "max_pending_requests", b.MaxPending)
			}
			continue // what was freed before the ticket counted
		}
		select {
		case <-ticket:
			ticket = nil
		case <-ctx.Done():
			return nil, failed(ctx, o.t, "wait for a connection to", ReasonClientGone, ctx.Err())
		}
	}
}

func (o *opening) dial1(ctx context.Context) (*H1, error) {
	c, err := o.dial(ctx)
	if err != nil {
		return nil, err
	}
	return newH1(o.m, o.p, c, o.t.Cluster), nil
}

// dial opens a connection whose breaker slot is taken already.
func (o *opening) dial(ctx context.Context) (*Conn, error) {
	alpn := o.t.ALPN
	if alpn == nil {
		alpn = httpALPN(o.t.Cluster, o.tr.ALPN, o.p.offer(), o.p.key.istio)
	}
	c, err := o.m.connect(ctx, o.t, o.tr, alpn)
	if err != nil {
		o.p.limits.freeConn()
		return nil, err
	}
	l := o.p.limits
	c.release = func() { l.freeConn(); o.m.stats.open.Add(-1) }
	return c, nil
}

// offer is the version to offer: once an Auto pool is known to speak HTTP/1,
// its further connections must not turn out to be HTTP/2.
func (p *pool) offer() Version {
	if p.key.version == Auto && p.speaks() == HTTP1 {
		return HTTP1
	}
	return p.key.version
}
