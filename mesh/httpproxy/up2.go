// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// roundTrip2 sends the request over HTTP/2, whose client reads the body on a
// goroutine of its own.
func (a *attempt) roundTrip2() *failure {
	x := a.x
	r := a.request2()
	resp, err := a.lease.H2.RoundTrip(r)
	if err == nil {
		if err = checkFields(resp.Header); err != nil {
			return &failure{reason: "upstream_protocol", status: http.StatusBadGateway, err: err}
		}
		a.resp = resp
		return nil
	}
	if x.src.state.Load() == sourceFailed {
		return a.broken(x.src.failed, false, false)
	}
	return a.broken(err, false, upstream.Refused(err))
}

// request2 makes the request in the form that net/http's client takes.
func (a *attempt) request2() *http.Request {
	x := a.x
	h := maps.Clone(x.r.Header)
	if h["User-Agent"] == nil {
		h["User-Agent"] = []string{""} // or the client would add its own
	}
	for k := range h {
		if ours(k) {
			delete(h, k)
		}
	}
	host := a.host()
	r := &http.Request{
		Method: x.r.Method, URL: opaqueURL(host, x.path), Host: host, Header: h,
		ContentLength: x.src.length, Body: http.NoBody,
	}
	if x.src.length != 0 || x.src.streams {
		a.out = x.src.outgoing()
		r.Body = a.out
		a.trailer2(r)
	}
	return r.WithContext(httptrace.WithClientTrace(a.ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			return x.c.informational(code, http.Header(h))
		},
	}))
}

// trailer2 lets the client send the trailers of a streamed body. It reads the
// map when the body has ended, and wants to know before that there may be one.
func (a *attempt) trailer2(r *http.Request) {
	src := &a.x.src
	if !src.streams || src.trailer == nil {
		return
	}
	t := make(http.Header)
	for k := range src.trailers() {
		t[k] = nil
	}
	stripTrailers(t)
	r.Trailer = t
	a.out.atEOF = func() {
		got := src.trailers()
		stripTrailers(got)
		maps.Copy(t, got)
	}
}

// opaqueURL makes a URL whose request target is just the given path, which
// net/url's own encoding would change.
func opaqueURL(host, target string) *url.URL {
	path, query, hasQuery := strings.Cut(target, "?")
	u := &url.URL{Scheme: "http", Host: host, Opaque: path, RawQuery: query, ForceQuery: hasQuery && query == ""}
	if strings.HasPrefix(path, "//") {
		// Taken for an authority; the client cuts "http://host" off again.
		u.Opaque = "//" + host + path
	}
	if host == "" {
		u.Host = "none" // net/http wants one; the Host field is what is sent
	}
	return u
}

// end2 ends a stream, with a reset if it is not over.
func (a *attempt) end2() bool {
	if a.resp != nil {
		_ = a.resp.Body.Close() // the stream ends either way
	}
	sent := a.x.src.ended()
	a.cancel()
	a.lease.H2.Done()
	return sent
}
