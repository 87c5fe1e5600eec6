// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
)

// reasonHeader carries the reason of an answer that no endpoint gave.
const reasonHeader = "X-Nasp-Tun-Reason"

// A reply is an answer of our own.
type reply struct {
	status int
	header http.Header // may be nil
	body   []byte
	// reason is empty for what the mesh asked for: redirects and the like.
	reason telemetry.Reason
	err    error
	close  bool // the connection cannot be used any further
}

// refuse makes the reply to a request that cannot be served: what happened,
// and where to look.
func refuse(status int, reason telemetry.Reason, err error) *reply {
	return &reply{status: status, reason: reason, err: err}
}

// render fills in what the client will read.
func (r *reply) render() {
	if r.header == nil {
		r.header = make(http.Header, 2)
	}
	if r.reason == telemetry.OK {
		return
	}
	r.header[reasonHeader] = []string{r.reason.String()}
	r.header["Content-Type"] = []string{"text/plain"}
	text := "nasp-tun: " + advice(r.reason)
	if r.err != nil {
		text += "\n" + r.err.Error()
	}
	r.body = []byte(text + "\n")
}

// advice is the sentence that the README has for a reason.
func advice(reason telemetry.Reason) string {
	for _, i := range telemetry.Reasons() {
		if i.Reason == reason {
			return i.Text
		}
	}
	return reason.String()
}

// answer sends a reply of our own and notes it.
func (x *exchange) answer(r *reply) {
	x.rec.Status = r.status
	x.rec.Fail(r.reason, r.err)
	if x.rec.Reason == telemetry.BadRequest {
		x.p.refused.Add(1)
	}
	if errors.Is(r.err, errClientGone) || errors.Is(r.err, errDrained) {
		x.rec.Status = 0 // nobody is there to read it, as in Envoy
		x.c.abort()
		return
	}
	r.render()
	if x.grpc {
		x.rec.GRPCStatus = r.grpc()
	}
	x.mutateAnswer(r.header)
	x.whole = !r.close && x.src.ended()
	if err := x.c.reply(x, r); err != nil {
		x.whole = false
		x.c.abort()
	}
}

// grpc turns the reply into one without a body, as gRPC clients want it, and
// returns its status. The codes are Envoy's for the HTTP ones.
func (r *reply) grpc() string {
	code := "2" // UNKNOWN
	switch r.status {
	case http.StatusBadRequest:
		code = "13" // INTERNAL
	case http.StatusUnauthorized:
		code = "16" // UNAUTHENTICATED
	case http.StatusForbidden:
		code = "7" // PERMISSION_DENIED
	case http.StatusNotFound:
		code = "12" // UNIMPLEMENTED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		code = "14" // UNAVAILABLE
	}
	r.header["Content-Type"] = []string{"application/grpc"}
	r.header["Grpc-Status"] = []string{code}
	r.header["Grpc-Message"] = []string{grpcMessage(strings.TrimSpace(string(r.body)))}
	r.status, r.body = http.StatusOK, nil
	return code
}

// grpcMessage percent-encodes as the gRPC protocol wants it.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			const digits = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

// grpcStatus returns the status of a gRPC response: of its trailers, or of its
// head if it has nothing else.
func grpcStatus(r *http.Response) string {
	if s := r.Trailer.Get("Grpc-Status"); s != "" {
		return s
	}
	if s := r.Header.Get("Grpc-Status"); s != "" {
		return s
	}
	return ""
}

func statusLine(code int) string { return strconv.Itoa(code) + " " + http.StatusText(code) }
