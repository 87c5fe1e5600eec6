// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// A client is the side of an exchange that asks. Except for abort, its methods
// are called on the exchange's goroutine.
type client interface {
	// informational passes a 1xx response on.
	informational(status int, h http.Header) error
	// respond passes the final response on, with its body and trailers. It
	// tells which side failed.
	respond(x *exchange, r *http.Response) (side, error)
	// reply answers from here.
	reply(x *exchange, r *reply) error
	// switched relays an upgraded connection until both sides have ended.
	switched(x *exchange, a *attempt) error
	// abort makes the client see that the response is not whole. Any
	// goroutine may call it.
	abort()
}

// An exchange is one request and its response.
type exchange struct {
	// Set by the client's engine.
	p       *Proxy
	in      *Downstream
	c       client
	ctx     context.Context // ends when the client is gone
	r       *http.Request
	src     source
	upgrade string // the protocol that the client would switch to
	h2      bool   // the client speaks HTTP/2

	// Set by route.
	snap    *catalog.Snapshot
	route   *resource.Route
	action  *resource.RouteAction
	cluster *catalog.Cluster
	host    string // as sent upstream, as is path
	path    string
	answers [3]*resource.HeaderMutations // of the response: cluster, route, host
	outside bool                         // passed through to the original destination
	counted bool                         // the endpoint is told which try it sees

	from    *upstream.H1 // where the response comes from; nil: HTTP/2
	grpc    bool
	rec     telemetry.Record
	life    lifeline
	begun   atomic.Bool // the final response may have reached the client
	whole   bool        // request and response came to their ends
	timers  []*time.Timer
	idle    *time.Timer
	idleFor time.Duration
}

// begin starts an exchange for a request whose fields the engine has set.
func (x *exchange) begin() {
	x.p.active.Add(1)
	x.grpc = strings.HasPrefix(x.r.Header.Get("Content-Type"), "application/grpc")
	x.host, x.path = x.r.Host, x.r.RequestURI
	x.rec = telemetry.Record{
		Start: time.Now(), Protocol: telemetry.HTTP, Src: x.in.Src, Dst: x.in.Dst,
		Method: x.r.Method, Host: x.r.Host, Path: x.r.RequestURI,
	}
	if x.grpc {
		x.rec.Protocol = telemetry.GRPC
	}
}

// run carries the exchange to its end.
func (x *exchange) run() {
	if t := x.in.Manager.RequestTimeout; t > 0 && x.src.streams {
		stop := x.after(t, errRequestTimeout)
		x.src.atEnd = func() { stop.Stop() }
	}
	if r := x.decide(); r != nil {
		x.answer(r)
		return
	}
	x.forward()
}

// finish writes the record. The engine has noted what went over the wire, and
// nothing of the exchange runs any more.
func (x *exchange) finish() {
	for _, t := range x.timers {
		t.Stop()
	}
	if x.life.end() != nil {
		x.whole = false
	}
	x.rec.BytesReceived = x.src.received()
	x.src.drop()
	x.p.cfg.Telemetry.Request(&x.rec)
	x.p.active.Add(-1)
}

// after cuts the exchange off when d has passed.
func (x *exchange) after(d time.Duration, cause error) *time.Timer {
	t := time.AfterFunc(d, func() { x.expire(cause) })
	x.timers = append(x.timers, t)
	return t
}

func (x *exchange) expire(cause error) {
	if x.life.cut(cause) && x.begun.Load() {
		x.c.abort() // it may be the client that does not read
	}
}

// deadline arms the route's time-outs. As in Envoy that of the whole runs from
// the end of the request, so that a long upload is not charged to the endpoint.
func (x *exchange) deadline() {
	total := x.action.Timeout
	if x.grpc && x.action.MaxGRPCTimeout != nil {
		total = grpcTimeout(x.r.Header.Get("Grpc-Timeout"), *x.action.MaxGRPCTimeout)
	}
	idle := x.action.IdleTimeout
	if idle == 0 {
		idle = x.in.Manager.StreamIdleTimeout
	}
	if total == 0 && idle == 0 && len(x.timers) == 0 {
		return
	}
	x.ctx = x.life.context(x.ctx)
	if idle > 0 {
		x.idle, x.idleFor = x.after(idle, errIdle), idle
	}
	switch {
	case total == 0:
	case x.src.streams:
		prev := x.src.atEnd
		x.src.atEnd = func() {
			if prev != nil {
				prev()
			}
			x.life.start(time.AfterFunc(total, func() { x.expire(errTimeout) }))
		}
	default:
		x.after(total, errTimeout)
	}
}

// touch notes that something moved, for the idle time-out.
func (x *exchange) touch(int) {
	if x.idle != nil {
		x.idle.Reset(x.idleFor)
	}
}

// deliver passes a response on and ends its attempt.
func (x *exchange) deliver(a *attempt) {
	r := a.resp
	x.rec.Status = r.StatusCode
	if r.StatusCode == http.StatusSwitchingProtocols {
		if err := x.c.switched(x, a); err != nil {
			x.cut(sideRead, err)
		}
		return
	}
	stripResponse(r.Header)
	x.mutateAnswer(r.Header)
	x.src.keep.Store(false) // there will be no other try
	x.from = a.lease.H1
	s, err := x.c.respond(x, r)
	if x.grpc {
		x.rec.GRPCStatus = grpcStatus(r)
	}
	x.whole = a.end(err == nil) && err == nil
	if err != nil {
		x.cut(s, err)
		x.c.abort()
	}
}

// answerReady reports whether the response's body can be read at once.
func (x *exchange) answerReady() bool { return x.from != nil && x.from.R.Buffered() > 0 }

// cut notes why an exchange ended whose response had begun.
func (x *exchange) cut(s side, err error) {
	switch why := x.life.why(); {
	case why != nil:
		x.rec.Fail(reasonOf(why), why)
	case s == sideWrite:
		x.rec.Fail(telemetry.ClientGone, err)
	case upstream.IsAlert(err):
		x.rec.Fail(telemetry.TLS, err)
	default:
		x.rec.Fail(telemetry.UpstreamReset, err)
	}
}

// reasonOf returns the reason of an exchange that was cut off.
func reasonOf(why error) telemetry.Reason {
	switch {
	case errors.Is(why, errClientGone):
		return telemetry.ClientGone
	case errors.Is(why, errDrained):
		return telemetry.Drained
	case errors.Is(why, errIdle):
		return telemetry.Idle
	case errors.Is(why, errRequestTimeout):
		return telemetry.BadRequest
	}
	return telemetry.Timeout
}

// random is for choices, not for secrets.
func random() uint64 { return rand.Uint64() }
