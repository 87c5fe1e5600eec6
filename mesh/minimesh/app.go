// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// The headers that a sidecar owns.
const (
	headerXFCC  = "X-Forwarded-Client-Cert"
	headerProto = "X-Forwarded-Proto"
	headerID    = "X-Request-Id"
)

// app is the HTTP side of a port: the sidecar's work on the headers, then the
// application.
func (w *workload) app(p Port) http.Handler {
	application := w.application(p)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		forward(r, w.identity)
		application.ServeHTTP(rw, r)
	})
}

// application is what a port serves: gRPC or the HTTP echo, by content type.
func (w *workload) application(p Port) http.Handler {
	echo := w.httpEcho(p)
	rpc := w.grpcEcho()
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			rpc.ServeHTTP(rw, r)
			return
		}
		echo.ServeHTTP(rw, r)
	})
}

// forward does to the headers of a request what a sidecar does
// (forward_client_cert_details SANITIZE_SET): what the client says of its
// certificate is dropped, and what the certificate says is told.
func forward(r *http.Request, by string) {
	r.Header.Del(headerXFCC)
	scheme := "http"
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		scheme = "https"
		r.Header.Set(headerXFCC, xfcc(by, r))
	}
	if r.Header.Get(headerProto) == "" {
		r.Header.Set(headerProto, scheme)
	}
	if r.Header.Get(headerID) == "" {
		r.Header.Set(headerID, requestID())
	}
}

// xfcc tells of a client certificate in Envoy's format: the elements that
// Istio asks for are the subject, which is empty, and the URI.
func xfcc(by string, r *http.Request) string {
	leaf := r.TLS.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	var uris []string
	for _, u := range leaf.URIs {
		uris = append(uris, u.String())
	}
	return fmt.Sprintf(`By=%s;Hash=%s;Subject="%s";URI=%s`, by, hex.EncodeToString(sum[:]), leaf.Subject, strings.Join(uris, ";URI="))
}

// requestID makes a random UUID, as Envoy does.
func requestID() string {
	var b [16]byte
	rand.Read(b[:])         // never fails
	b[6] = b[6]&0x0f | 0x40 // version 4
	b[8] = b[8]&0x3f | 0x80 // variant of RFC 9562
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// report is the text with which the echo answers: what the application has
// seen of the request, in the form of nasp's echo server.
func (w *workload) report(p Port, r *http.Request) string {
	var b strings.Builder
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintf(&b, "Hostname: %s\n\nRequest Information:\n", w.name)
	fmt.Fprintf(&b, "\tclient_address=%s\n\tmethod=%s\n\treal path=%s\n\tquery=%s\n", client, r.Method, r.URL.Path, r.URL.RawQuery)
	fmt.Fprintf(&b, "\trequest_version=%d.%d\n\trequest_scheme=http\n", r.ProtoMajor, r.ProtoMinor)
	fmt.Fprintf(&b, "\trequest_uri=http://%s:%d%s\n\nRequest Headers:\n", host, p.target(), r.URL.RequestURI())
	lines := []string{"host=" + r.Host}
	for name, values := range r.Header {
		lines = append(lines, strings.ToLower(name)+"="+strings.Join(values, ","))
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Fprintf(&b, "\t%s\n", l)
	}
	return b.String()
}
