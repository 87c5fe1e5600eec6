// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// stripHop removes the fields that concern one hop only (RFC 9110 7.6.1), and
// returns the protocol that the other side asks to switch to. Connection: close
// is among them: copied on, it would cost a TLS handshake for each request of
// a client that does not reuse connections.
func stripHop(h http.Header) (upgrade string) {
	for _, field := range h["Connection"] {
		for token := range strings.SplitSeq(field, ",") {
			switch token = strings.TrimSpace(token); {
			case token == "", strings.EqualFold(token, "close"), strings.EqualFold(token, "keep-alive"):
			case strings.EqualFold(token, "upgrade"):
				upgrade = h.Get("Upgrade")
			case strings.EqualFold(token, "te"): // below
			default:
				h.Del(token)
			}
		}
	}
	if te, ok := h["Te"]; ok {
		delete(h, "Te")
		if httpguts.HeaderValuesContainsToken(te, "trailers") {
			h["Te"] = []string{"trailers"} // gRPC servers want to see it
		}
	}
	for _, k := range []string{"Connection", "Upgrade", "Keep-Alive", "Proxy-Connection", "Http2-Settings"} {
		delete(h, k)
	}
	return upgrade
}

// stripResponse removes what the endpoint's side says to ours only.
func stripResponse(h http.Header) {
	if h["Connection"] != nil || h["Keep-Alive"] != nil || h["Proxy-Connection"] != nil {
		stripHop(h)
	}
	delete(h, "Upgrade")
}

// stripTrailers drops what may not stand behind a body (RFC 9110 6.5.1).
func stripTrailers(t http.Header) {
	for k, vs := range t {
		bad := !httpguts.ValidTrailerHeader(k) || !httpguts.ValidHeaderFieldName(k)
		for _, v := range vs {
			bad = bad || !httpguts.ValidHeaderFieldValue(v)
		}
		if bad {
			delete(t, k)
		}
	}
}

// addForwarded adds the fields that a sidecar adds, and drops the one that only
// a proxy may send: who the client is, proved by a certificate.
func (x *exchange) addForwarded() {
	h, m := x.r.Header, x.in.Manager
	if !m.ForwardClientCert {
		delete(h, "X-Forwarded-Client-Cert")
	}
	if m.AppendXFF {
		src := x.in.Src.Addr().String()
		if old := h["X-Forwarded-For"]; len(old) > 0 {
			src = strings.Join(old, ", ") + ", " + src
		}
		h["X-Forwarded-For"] = []string{src}
	}
	if m.AppendXFF || h["X-Forwarded-Proto"] == nil {
		h["X-Forwarded-Proto"] = protoHTTP
	}
	if id := h["X-Request-Id"]; len(id) > 0 {
		x.rec.RequestID = id[0]
	} else if m.GenerateReqID {
		x.rec.RequestID = requestID()
		h["X-Request-Id"] = []string{x.rec.RequestID}
	}
}

var protoHTTP = []string{"http"}

// requestID returns a random UUID, version 4. It tells requests apart and is
// no secret, so the fast source of randomness will do.
func requestID() string {
	var u [16]byte
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		u[i], u[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	var s [36]byte
	hex.Encode(s[0:8], u[0:4])
	hex.Encode(s[9:13], u[4:6])
	hex.Encode(s[14:18], u[6:8])
	hex.Encode(s[19:23], u[8:10])
	hex.Encode(s[24:36], u[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

// mutateAnswer changes a response's fields as cluster, route and virtual host
// say, the most specific first, as Envoy does.
func (x *exchange) mutateAnswer(h http.Header) {
	for _, m := range x.answers {
		if m != nil {
			mutate(h, m)
		}
	}
}

// mutate applies a resource's changes to header fields.
func mutate(h http.Header, m *resource.HeaderMutations) {
	for _, name := range m.Remove {
		h.Del(name)
	}
	for i := range m.Set {
		v := &m.Set[i]
		name := http.CanonicalHeaderKey(v.Name)
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v.Value) {
			continue // a pseudo-header, which is not changed this way
		}
		_, have := h[name]
		switch v.Action {
		case resource.AppendOrAdd:
			h[name] = append(slices.Clip(h[name]), v.Value)
		case resource.AddIfAbsent:
			if !have {
				h[name] = []string{v.Value}
			}
		case resource.OverwriteOrAdd:
			h[name] = []string{v.Value}
		case resource.OverwriteIfExists:
			if have {
				h[name] = []string{v.Value}
			}
		}
	}
}

// hostOf returns the Host that mutations set, or host.
func hostOf(host string, m *resource.HeaderMutations) string {
	for i := range m.Set {
		if n := m.Set[i].Name; strings.EqualFold(n, "host") || n == ":authority" {
			host = m.Set[i].Value
		}
	}
	return host
}

// defaultHost is the Host of an HTTP/1.0 request without one.
func defaultHost(m *resource.HTTPManager, dst netip.AddrPort) string {
	if m.DefaultHostHTTP1 != "" {
		return m.DefaultHostHTTP1
	}
	return dst.String()
}
