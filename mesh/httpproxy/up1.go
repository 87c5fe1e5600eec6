// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// maxResponseHead bounds a response's head, 1xx included one by one.
const maxResponseHead = 64 << 10

// writers saves the buffers of HTTP/1 requests.
var writers = sync.Pool{New: func() any { b := make([]byte, 0, writeBuffer); return &b }}

// roundTrip1 sends the request over HTTP/1 and reads the response's head. A
// body that is whole goes out with the head; another one is left to a pump.
func (a *attempt) roundTrip1() *failure {
	x, h := a.x, a.lease.H1
	reused := h.Reused
	if !x.life.hold(h) {
		return a.broken(x.life.why(), false, false)
	}
	small := writers.Get().(*[]byte)
	defer func() {
		if a.pump == nil {
			a.w.drop()
			writers.Put(small)
		}
	}()
	a.w.small = *small
	a.w.reset(h.Conn)
	a.head1()
	var err error
	if x.src.streams {
		a.startPump(small)
	} else {
		a.w.bytes(x.src.whole)
		err = a.w.flush()
	}
	if err != nil {
		// The endpoint may have answered, as to a body that it finds too
		// long, before it closed: what it said is still to be read.
		if resp, e := a.read1(); e == nil {
			a.resp = resp
			resp.Close = true
			return nil
		}
		return a.broken(err, reused, false)
	}
	if a.resp, err = a.read1(); err != nil {
		return a.broken(err, reused && !errors.Is(err, errPartial), false)
	}
	return nil
}

// head1 writes the request's head.
func (a *attempt) head1() {
	x, w := a.x, &a.w
	w.str(x.r.Method)
	w.str(" ")
	w.str(x.path)
	w.str(" HTTP/1.1\r\nHost: ")
	w.str(a.host())
	w.str("\r\n")
	keys := w.fields(x.r.Header, make([]string, 0, 16))
	if x.upgrade != "" {
		w.str("Connection: Upgrade\r\n")
		w.field("Upgrade", x.upgrade)
	}
	switch {
	case x.src.length < 0:
		w.trailer(x.r.Trailer, keys)
		w.str("Transfer-Encoding: chunked\r\n")
	case x.src.length > 0, x.r.Header["Content-Length"] != nil:
		w.number("Content-Length", x.src.length)
	}
	w.str("\r\n")
}

// host is the Host to send.
func (a *attempt) host() string {
	if a.x.action.AutoHostRewrite && a.target.Host != nil {
		if name := a.target.Host.Endpoint.Hostname; name != "" {
			return name
		}
	}
	return a.x.host
}

// startPump sends the body on another goroutine, which ends with the body, by
// an error, or when either connection is closed.
func (a *attempt) startPump(small *[]byte) {
	x := a.x
	p := &pump{done: make(chan struct{})}
	a.pump = p
	x.src.wg.Go(func() {
		defer close(p.done)
		defer func() {
			a.w.drop()
			writers.Put(small)
		}()
		p.err = a.sendBody(p)
		if x.src.state.Load() == sourceFailed {
			// The client broke off or sent nonsense: the endpoint must not
			// wait for the rest, nor take what it has for the whole.
			a.lease.H1.Abort()
		}
	})
}

func (a *attempt) sendBody(p *pump) error {
	x, w := a.x, &a.w
	if x.r.Header["Expect"] != nil || x.src.ready == nil || !x.src.ready() {
		if err := w.flush(); err != nil { // the body may wait for an answer to the head
			return err
		}
	}
	chunked := x.src.length < 0
	if _, err := w.relay(&x.src, chunked, x.touch); err != nil {
		return err
	}
	if chunked {
		t := x.src.trailers()
		stripTrailers(t)
		w.endChunks(t, nil)
	}
	p.sent.Store(true)
	return w.flush()
}

// errPartial marks an error in the middle of a response's head.
var errPartial = errors.New("part of a response was read")

// read1 reads heads until the final one, and passes 1xx on.
func (a *attempt) read1() (*http.Response, error) {
	h := a.lease.H1
	defer h.LimitHead(0)
	for {
		h.LimitHead(maxResponseHead)
		if _, err := h.R.Peek(1); err != nil {
			return nil, err
		}
		r, err := http.ReadResponse(h.R, a.x.r)
		if err == nil {
			err = checkResponse(r)
		}
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("%w: %w", errPartial, err)
		case err != nil && a.x.life.why() == nil && !upstream.IsAlert(err) && !isNet(err):
			return nil, fmt.Errorf("%w: %w: %w", errProtocol, errPartial, err)
		case err != nil:
			return nil, fmt.Errorf("%w: %w", errPartial, err)
		case r.StatusCode >= 200, r.StatusCode == http.StatusSwitchingProtocols:
			return r, nil
		}
		stripHop(r.Header)
		if err := a.x.c.informational(r.StatusCode, r.Header); err != nil {
			a.x.life.cut(fmt.Errorf("%w: %w", errClientGone, err))
			return nil, err
		}
	}
}

// end1 puts an HTTP/1 connection back if nothing is left on it.
func (a *attempt) end1(whole bool) bool {
	h := a.lease.H1
	sent := a.pump == nil || a.pump.over()
	whole = whole && sent && a.resp != nil && !a.resp.Close
	if whole {
		a.x.life.letGo()
		h.Put()
		return sent
	}
	h.Abort() // ends a pump that is writing; one that reads ends with the client's body
	a.x.life.letGo()
	h.Discard()
	return sent
}

// isNet reports whether an error is of the connection, not of what came by it.
func isNet(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, net.ErrClosed) || errors.Is(err, upstream.ErrTruncated)
}
