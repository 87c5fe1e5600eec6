// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// A record is what the audit tells of one request. Namespace and group are
// what the token claims; the account is set when that was verified.
type record struct {
	source                    netip.Addr
	namespace, group, account string
	reason                    string // of a refusal
}

// refused notes why.
func (r *record) refused(err error) error {
	r.reason = err.Error()
	return err
}

type recordKey struct{}

// recordOf returns the record of a request; audited has put one there.
func recordOf(ctx context.Context) *record {
	if r, ok := ctx.Value(recordKey{}).(*record); ok {
		return r
	}
	return &record{}
}

// audited writes one line for each answer, and counts it.
func (s *Server) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &record{}
		if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			rec.source = a.Addr().Unmap()
		}
		answer := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(answer, r.WithContext(context.WithValue(r.Context(), recordKey{}, rec)))
		took := time.Since(start)
		s.metrics.requests.WithLabelValues(strconv.Itoa(answer.code)).Inc()
		s.metrics.duration.Observe(took.Seconds())
		s.cfg.Audit.InfoContext(r.Context(), "enrolment asked for",
			"status", answer.code, "src", rec.source, "method", r.Method, "namespace", rec.namespace, "group", rec.group,
			"account", rec.account, "reason", rec.reason, "duration", took)
	})
}

// A statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.MaxBytesReader and http.ResponseController through.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
