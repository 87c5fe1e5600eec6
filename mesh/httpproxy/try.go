// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// maxReplays bounds how often a request is sent again because the pooled
// connection it went out on was dead. One that is made anew ends the series.
const maxReplays = 2

// An attempt is one try of a request: an endpoint, a connection, a response.
type attempt struct {
	x       *exchange
	ctx     context.Context
	cancel  context.CancelFunc // may be nil
	timer   *time.Timer        // per try; may be nil
	version upstream.Version
	target  upstream.Target
	lease   upstream.Lease
	resp    *http.Response
	w       writer    // of an HTTP/1 request
	pump    *pump     // nil: the request was sent inline
	out     *outgoing // body of an HTTP/2 request
	ended   bool
}

// A failure is an attempt without a response.
type failure struct {
	reason telemetry.Reason
	err    error
	on     resource.RetryOn // conditions of a retry policy that it meets
	status int              // for the client
	// dead tells that a connection out of the pool was closed by the endpoint
	// before it sent anything of a response.
	dead bool
}

// forward sends the request upstream, again and again as the policy allows,
// and passes the response on.
func (x *exchange) forward() {
	x.addForwarded()
	x.deadline()
	var s series
	s.init(x)
	for {
		if x.counted {
			x.r.Header["X-Envoy-Attempt-Count"] = []string{strconv.Itoa(s.number())}
		}
		a := &attempt{x: x}
		f := a.run(&s)
		if f == nil && !s.again(s.answerConditions(a.resp)) {
			if s.exhausted {
				x.rec.Flags = "URX"
			}
			x.deliver(a)
			return
		}
		if f == nil {
			a.end(a.drain())
			s.pause()
			continue
		}
		a.end(false)
		switch {
		case x.life.stopped():
			x.answer(cutReply(x.life.why()))
			return
		case f.dead && s.replays < maxReplays && x.src.replayable():
			s.replays++
			s.fresh = s.replays == maxReplays
			x.p.replays.Add(1)
			x.src.rewind()
		case s.again(f.on):
			s.pause()
		default:
			x.giveUp(f, &s)
			return
		}
	}
}

// drain reads the body of a response that is not wanted, if it is there
// already: then the connection is good for more.
func (a *attempt) drain() bool {
	h, n := a.lease.H1, a.resp.ContentLength
	if h == nil || n < 0 || n > int64(h.R.Buffered()) {
		return false
	}
	_, err := io.Copy(io.Discard, a.resp.Body)
	return err == nil
}

// giveUp answers for an attempt that was the last.
func (x *exchange) giveUp(f *failure, s *series) {
	if x.src.failed != nil && x.src.state.Load() == sourceFailed {
		x.answer(&reply{status: http.StatusBadRequest, reason: telemetry.BadRequest, err: fmt.Errorf("request body: %w", x.src.failed), close: true})
		return
	}
	r := refuse(f.status, f.reason, f.err)
	r.close = !x.src.ended()
	if f.reason == telemetry.Timeout && f.on&resource.RetryConnectFailure != 0 {
		x.rec.Flags = "UF" // it is the connecting that took too long
	}
	if s.exhausted {
		if x.rec.Flags == "" {
			x.rec.Flags = f.reason.Flag()
		}
		x.rec.Flags += ",URX"
	}
	x.answer(r)
}

// cutReply is the answer of an exchange that was ended early and had not begun
// to respond.
func cutReply(why error) *reply {
	r := refuse(http.StatusGatewayTimeout, reasonOf(why), why)
	if errors.Is(why, errRequestTimeout) {
		r.status = http.StatusRequestTimeout
	}
	r.close = true
	return r
}

// run makes the attempt. On success resp is the final response, or one of 101.
func (a *attempt) run(s *series) *failure {
	x := a.x
	a.ctx = x.ctx
	a.version = versionFor(x.cluster.Config, x.h2, x.upgrade != "")
	retry := x.action.Retry
	perTry := retry != nil && retry.PerTryTimeout > 0
	if perTry || a.version != upstream.HTTP1 || x.h2 {
		a.ctx, a.cancel = context.WithCancel(x.ctx)
	}
	x.life.begin(a.cancel)
	if perTry {
		a.timer = time.AfterFunc(retry.PerTryTimeout, func() { x.expireTry() })
	}
	x.rec.Tries++
	if f := a.connect(s); f != nil {
		return f
	}
	trip := a.roundTrip1
	if a.lease.H2 != nil {
		trip = a.roundTrip2
	}
	f := trip()
	// A response that has begun is not cut off by the time-out of its try, as
	// in Envoy.
	if f == nil && a.timer != nil && !a.timer.Stop() {
		return tooLate()
	}
	return f
}

// tooLate is the failure of a try whose own time-out passed.
func tooLate() *failure {
	return &failure{
		reason: telemetry.Timeout, status: http.StatusGatewayTimeout, err: errTryTimeout,
		on: resource.RetryReset | resource.Retry5xx | resource.RetryGatewayError,
	}
}

func (x *exchange) expireTry() { x.life.cut(errTryTimeout) }

// versionFor is the HTTP version to speak to a cluster.
func versionFor(c *resource.Cluster, clientH2, upgrade bool) upstream.Version {
	switch {
	case upgrade && c.HTTP != resource.HTTP2:
		return upstream.HTTP1 // which alone can be upgraded
	case c.HTTP == resource.HTTP2, c.HTTP == resource.Downstream && clientH2:
		return upstream.HTTP2
	case c.HTTP == resource.AutoHTTP:
		return upstream.Auto
	}
	return upstream.HTTP1
}

// connect picks an endpoint and gets a connection to it.
func (a *attempt) connect(s *series) *failure {
	x := a.x
	if x.upgrade != "" && a.version == upstream.HTTP2 {
		return &failure{
			reason: telemetry.TransportUnsupported, status: http.StatusNotImplemented,
			err: fmt.Errorf("upgrade to %.40q over HTTP/2 is not supported", x.upgrade),
		}
	}
	t, err := x.p.cfg.Upstream.Pick(a.ctx, x.cluster.Config, x.cluster.LB, x.in.Dst, s.pick())
	if err != nil {
		return a.failed(err)
	}
	a.target = t
	if x.outside {
		a.target.Dial = x.p.cfg.Passthrough
	}
	if h := a.target.Host; h != nil {
		h.Acquire()
		s.previous = append(s.previous, h)
	}
	tr := a.target.Transport()
	x.rec.Endpoint, x.rec.Upstream = a.target.Endpoint(), a.target.Address().String()
	x.rec.MTLS, x.rec.PeerID = tr.Kind == resource.IstioMTLS, ""
	switch dst := a.target.Address().Addr(); {
	case tr.Kind != resource.Plain:
	case x.snap.HBONEOnly(dst):
		return &failure{
			reason: telemetry.TransportUnsupported, status: http.StatusServiceUnavailable,
			err: fmt.Errorf("%s is reached by HBONE only, which is not supported yet", x.rec.Upstream),
		}
	case a.target.Host == nil && x.snap.Strays(x.cluster.Config, dst):
		return &failure{
			reason: telemetry.Unrouted, status: http.StatusBadGateway,
			err: fmt.Errorf("%s belongs to another service than %s", x.rec.Upstream, x.cluster.Config.Name),
		}
	}
	a.lease, err = x.p.cfg.Upstream.HTTP(a.ctx, upstream.HTTPRequest{
		Target: a.target, Version: a.version, IstioALPN: x.in.Manager.IstioALPN, Fresh: s.fresh,
	})
	if err != nil {
		return a.failed(err)
	}
	x.rec.PeerID = a.conn().PeerID()
	return nil
}

func (a *attempt) conn() *upstream.Conn {
	if a.lease.H2 != nil {
		return a.lease.H2.Conn()
	}
	return a.lease.H1.Conn
}

// failed explains an error from before the request was sent.
func (a *attempt) failed(err error) *failure {
	if a.x.life.why() == errTryTimeout {
		return tooLate()
	}
	f := &failure{err: err, status: http.StatusServiceUnavailable}
	f.reason = telemetry.Known(upstream.ReasonOf(err, upstream.ReasonConnect), telemetry.Connect)
	switch f.reason {
	case telemetry.Connect, telemetry.Timeout, telemetry.TLS, telemetry.TLSIdentity, telemetry.NoIdentity:
		f.on = resource.RetryConnectFailure | resource.Retry5xx | resource.RetryGatewayError | resource.RetryReset | resource.RetryResetBeforeRequest
	}
	return f
}

// broken explains an error from after the request began to be sent, with
// nothing of the final response read.
func (a *attempt) broken(err error, reused, refused bool) *failure {
	if a.x.life.why() == errTryTimeout {
		return tooLate()
	}
	f := &failure{err: err, reason: telemetry.UpstreamReset, status: http.StatusServiceUnavailable}
	f.on = resource.RetryReset | resource.Retry5xx | resource.RetryGatewayError
	switch {
	case refused:
		f.on |= resource.RetryRefusedStream
	case upstream.IsAlert(err):
		f.reason = telemetry.TLS
		f.err = fmt.Errorf("%s refuses our certificate: %w", a.target.Cluster.Name, err)
	case errors.Is(err, errProtocol):
		f.reason, f.status, f.on = telemetry.UpstreamProtocol, http.StatusBadGateway, resource.Retry5xx|resource.RetryGatewayError
	default:
		f.dead = reused
		f.err = fmt.Errorf("%s (%s) closed the connection before it answered: %w", a.target.Cluster.Name, a.target.Address(), err)
	}
	if a.x.src.streams && a.x.src.state.Load() == sourceUntouched {
		f.on |= resource.RetryResetBeforeRequest
	}
	return f
}

// errProtocol marks a response that is not valid HTTP.
var errProtocol = errors.New("malformed response")

// end gives the attempt's connection back, or drops it if the exchange is not
// whole. It reports whether the request was sent to its end.
func (a *attempt) end(whole bool) bool {
	if a.ended {
		return false
	}
	a.ended = true
	if a.timer != nil {
		a.timer.Stop()
	}
	sent := true
	switch {
	case a.lease.H1 != nil:
		sent = a.end1(whole)
	case a.lease.H2 != nil:
		sent = a.end2()
	}
	a.x.life.letGo()
	if a.cancel != nil {
		a.cancel()
	}
	if h := a.target.Host; h != nil {
		h.Release()
	}
	return sent
}

// pick is the question to the balancer for the next attempt.
func (s *series) pick() *balance.Pick {
	if len(s.previous) == 0 {
		return nil
	}
	p := &balance.Pick{Attempts: s.policy.HostAttempts}
	if s.policy.PreviousHosts {
		p.Previous = s.previous
	}
	return p
}
