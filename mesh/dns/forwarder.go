// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// forwardBudget bounds a forwarded question; a client's own patience is
	// five seconds a try by default (resolv.conf).
	forwardBudget = 5 * time.Second
	// minTry is the least time that a server gets to answer.
	minTry = time.Second
	// rounds is how often each server is asked: UDP loses packets.
	rounds = 2
)

// A DialFunc opens a socket towards a resolver, as net.Dialer.DialContext
// does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// A Forwarder asks the host's resolvers. It is safe for concurrent use.
type Forwarder struct {
	servers func() []netip.AddrPort
	dial    DialFunc
	good    atomic.Uint32 // the index of the server that answered last
}

var errNoServers = errors.New("the host has no resolvers")

// NewForwarder returns a Forwarder that asks the servers of the moment, the
// one that answered last before the others.
func NewForwarder(servers func() []netip.AddrPort, dial DialFunc) *Forwarder {
	return &Forwarder{servers: servers, dial: dial}
}

// Forward asks until a server has an answer, at most for five seconds: by UDP
// and, where that is cut short or the client itself came by TCP, by TCP. An
// answer that says that a server could not help is returned only when no other
// server does better. The answer carries the ID of its question.
func (f *Forwarder) Forward(ctx context.Context, q *mdns.Msg, tcp bool) (*mdns.Msg, error) {
	servers := f.servers()
	if len(servers) == 0 {
		return nil, errNoServers
	}
	end := time.Now().Add(forwardBudget)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	try := max(forwardBudget/time.Duration(rounds*len(servers)), minTry)
	first := int(f.good.Load())
	var failure error
	var poor *mdns.Msg
	for i := range rounds * len(servers) {
		at := (first + i) % len(servers)
		a, err := f.ask(ctx, servers[at], q, tcp, try)
		switch {
		case err != nil:
			failure = fmt.Errorf("ask %s: %w", servers[at], err)
		case a.Rcode == mdns.RcodeServerFailure || a.Rcode == mdns.RcodeRefused || a.Rcode == mdns.RcodeNotImplemented:
			poor = a
		default:
			f.good.Store(uint32(at))
			return a, nil
		}
		if ctx.Err() != nil || !time.Now().Before(end) || poor != nil && i >= len(servers)-1 {
			break // time is up, or everyone was asked and someone answered
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, failure
}

// ask asks one server once.
func (f *Forwarder) ask(ctx context.Context, server netip.AddrPort, q *mdns.Msg, tcp bool, try time.Duration) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, try)
	defer cancel()
	// An ID of our own: the client's may be guessed by whoever sees it.
	m := *q
	m.Id = mdns.Id()
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if tcp {
		a, err := f.exchange(ctx, "tcp", server, b, &m)
		return restore(a, q), err
	}
	a, err := f.exchange(ctx, "udp", server, b, &m)
	if err == nil && a.Truncated {
		if whole, err := f.exchange(ctx, "tcp", server, b, &m); err == nil {
			a = whole
		}
	}
	return restore(a, q), err
}

func restore(a, q *mdns.Msg) *mdns.Msg {
	if a != nil {
		a.Id = q.Id
	}
	return a
}

func (f *Forwarder) exchange(ctx context.Context, network string, server netip.AddrPort, b []byte, q *mdns.Msg) (*mdns.Msg, error) {
	c, err := f.dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	a, err := roundTrip(c, network == "tcp", b, q)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return a, err
}

func roundTrip(c net.Conn, tcp bool, b []byte, q *mdns.Msg) (*mdns.Msg, error) {
	if tcp {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	buf := make([]byte, max(limit(q, false), minUDPSize))
	for {
		var err error
		if tcp {
			buf, err = readMessage(c)
		} else {
			var n int
			n, err = c.Read(buf[:cap(buf)])
			buf = buf[:n]
		}
		if err != nil {
			return nil, err
		}
		// What does not answer our question is late, forged, or garbage: over
		// UDP the right one may still come.
		a := new(mdns.Msg)
		if err := a.Unpack(buf); err == nil && answers(a, q) {
			return a, nil
		} else if tcp {
			return nil, errors.New("the answer is not one to the question")
		}
	}
}

// answers reports whether a is an answer to q. A server that could not read
// the question does not repeat it.
func answers(a, q *mdns.Msg) bool {
	if !a.Response || a.Id != q.Id || a.Opcode != q.Opcode {
		return false
	}
	if len(a.Question) == 0 {
		return a.Rcode != mdns.RcodeSuccess && a.Rcode != mdns.RcodeNameError
	}
	x, y := a.Question[0], q.Question[0]
	return len(a.Question) == 1 && x.Qtype == y.Qtype && x.Qclass == y.Qclass && strings.EqualFold(x.Name, y.Name)
}
