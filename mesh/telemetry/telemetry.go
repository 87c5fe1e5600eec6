// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Config says who reports, and where to.
type Config struct {
	// Registerer receives the metrics; nil keeps them to ourselves.
	Registerer prometheus.Registerer
	Workload   Workload
	// Version is the tag of istio_build; empty leaves that metric out.
	Version string
	// Access receives one line a flow or request; nil: none are written.
	Access io.Writer
	// AccessFormat is "text" (the default) or "json".
	AccessFormat string
	Logger       *slog.Logger
}

// Telemetry counts and records. It is safe for concurrent use.
type Telemetry struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	access  *accessLog // nil: no records
}

// New registers the metrics. Access records are kept back until Run.
func New(cfg Config) (*Telemetry, error) {
	t := &Telemetry{cfg: cfg, log: cfg.Logger}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.metrics = newMetrics()
	if cfg.Registerer != nil {
		if err := t.metrics.register(cfg.Registerer); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	if cfg.Version != "" {
		t.metrics.build.WithLabelValues("proxy", cfg.Version).Set(1)
	}
	if cfg.Access != nil {
		format, err := parseFormat(cfg.AccessFormat)
		if err != nil {
			return nil, err
		}
		t.access = newAccessLog(cfg.Access, format, t.log, t.metrics.dropped)
	}
	return t, nil
}

// A Transfer counts the bytes of one open flow as they pass, so that a long
// flow shows in the metrics while it lives. Its two directions may be counted
// by two goroutines.
type Transfer struct {
	received, sent atomic.Int64
	series         *flowSeries
}

// Received counts n bytes that came from the client.
func (x *Transfer) Received(n int) {
	x.received.Add(int64(n))
	x.series.received.Add(float64(n))
}

// Sent counts n bytes that went to the client.
func (x *Transfer) Sent(n int) {
	x.sent.Add(int64(n))
	x.series.sent.Add(float64(n))
}

// Totals returns what has passed so far.
func (x *Transfer) Totals() (received, sent int64) {
	return x.received.Load(), x.sent.Load()
}

// Opened counts a TCP flow whose upstream is known by now. The labels of this
// moment hold for the flow's other metrics too, as in Istio: opened and closed
// connections would not add up otherwise.
func (t *Telemetry) Opened(r *Record) *Transfer {
	s := t.metrics.flow(t.keyOf(r), &t.cfg.Workload)
	s.opened.Inc()
	t.metrics.active.Inc()
	r.transfer = &Transfer{series: s}
	return r.transfer
}

// Closed counts the end of a TCP or UDP flow and writes its access record. A
// TCP flow that never opened counts as opened and closed, as in Istio.
func (t *Telemetry) Closed(r *Record) {
	switch {
	case r.transfer != nil:
		r.BytesReceived, r.BytesSent = r.transfer.Totals()
		r.transfer.series.closed.Inc()
		t.metrics.active.Dec()
	case r.Protocol == TCP:
		s := t.metrics.flow(t.keyOf(r), &t.cfg.Workload)
		s.opened.Inc()
		s.closed.Inc()
		s.received.Add(float64(r.BytesReceived))
		s.sent.Add(float64(r.BytesSent))
	}
	t.finish(r)
}

// Request counts a finished HTTP request and writes its access record.
func (t *Telemetry) Request(r *Record) {
	d := r.duration()
	r.Duration = d
	s := t.metrics.request(t.keyOf(r), &t.cfg.Workload)
	s.total.Inc()
	s.duration.Observe(float64(d / time.Millisecond)) // whole ones, as Envoy
	s.requestBytes.Observe(float64(max(r.RequestBytes, r.BytesReceived)))
	s.responseBytes.Observe(float64(max(r.ResponseBytes, r.BytesSent)))
	if r.Protocol == GRPC {
		s.requestMessages.Add(float64(r.RequestMessages))
		s.responseMessages.Add(float64(r.ResponseMessages))
	}
	t.finish(r)
}

func (t *Telemetry) finish(r *Record) {
	t.metrics.outcome(r.Protocol, r.Reason)
	if t.access != nil {
		t.access.write(r)
	}
}

// SniffTimedOut counts a client that stayed silent where its first bytes were
// awaited, and was then served as one that waits for the server to speak.
func (t *Telemetry) SniffTimedOut() { t.metrics.sniffTimeouts.Inc() }

// Active returns the number of TCP flows that are open.
func (t *Telemetry) Active() int64 { return t.metrics.active.value.Load() }
