// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the label cache.
const (
	// maxSeries bounds the label sets of each kind. One costs some 10 KB with
	// its histograms, so that the worst case stays near 20 MB; a client talks
	// to tens of services with a handful of outcomes each.
	maxSeries = 2048
	// maxForeign bounds the hosts outside the mesh that get labels of their
	// own: the client writes them, so that a crawler could make any number.
	maxForeign = 256
)

// buckets are Envoy's default histogram buckets.
var buckets = []float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000,
	30000, 60000, 300000, 600000, 1800000, 3600000,
}

// metrics holds every metric of the package.
type metrics struct {
	requests, requestMessages, responseMessages *prometheus.CounterVec
	duration, requestBytes, responseBytes       *prometheus.HistogramVec
	opened, closed, sent, received              *prometheus.CounterVec
	build                                       *prometheus.GaugeVec

	flows         *prometheus.CounterVec
	overflow      *prometheus.CounterVec
	sniffTimeouts prometheus.Counter
	dropped       prometheus.Counter
	active        gauge

	flowCache    seriesCache[flowSeries]
	requestCache seriesCache[requestSeries]
}

type flowSeries struct{ opened, closed, sent, received prometheus.Counter }

type requestSeries struct {
	total, requestMessages, responseMessages prometheus.Counter
	duration, requestBytes, responseBytes    prometheus.Observer
}

func newMetrics() *metrics {
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, requestLabels)
	}
	m := &metrics{
		requests:         counter("istio_requests_total", "HTTP and gRPC requests.", requestLabels),
		requestMessages:  counter("istio_request_messages_total", "gRPC messages sent by clients.", peerLabels),
		responseMessages: counter("istio_response_messages_total", "gRPC messages sent by servers.", peerLabels),
		duration:         histogram("istio_request_duration_milliseconds", "Time until a request was answered in full."),
		requestBytes:     histogram("istio_request_bytes", "Size of requests on the client's wire."),
		responseBytes:    histogram("istio_response_bytes", "Size of responses on the client's wire."),
		opened:           counter("istio_tcp_connections_opened_total", "TCP connections opened.", flowLabels),
		closed:           counter("istio_tcp_connections_closed_total", "TCP connections closed.", flowLabels),
		sent:             counter("istio_tcp_sent_bytes_total", "Bytes sent to clients of TCP connections.", flowLabels),
		received:         counter("istio_tcp_received_bytes_total", "Bytes received from clients of TCP connections.", flowLabels),
		build: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "istio_build", Help: "Version of the proxy.",
		}, []string{"component", "tag"}),
		flows: counter("nasp_tun_flows_total", "TCP and UDP flows and HTTP requests by outcome.", []string{"protocol", "reason"}),
		overflow: counter("nasp_tun_telemetry_overflow_total",
			"Observations booked on a destination \"unknown\" because there were too many label sets.", []string{"limit"}),
		sniffTimeouts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nasp_tun_sniff_timeouts_total",
			Help: "Connections whose client stayed silent where its first bytes were awaited.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nasp_tun_access_records_dropped_total",
			Help: "Access records lost because their writer was too slow or failed.",
		}),
	}
	m.flowCache.init()
	m.requestCache.init()
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	active := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nasp_tun_tcp_flows_active", Help: "TCP flows that are relayed now.",
	}, func() float64 { return float64(m.active.value.Load()) })
	for _, c := range []prometheus.Collector{
		m.requests, m.requestMessages, m.responseMessages, m.duration, m.requestBytes, m.responseBytes,
		m.opened, m.closed, m.sent, m.received, m.build,
		m.flows, m.overflow, m.sniffTimeouts, m.dropped, active,
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) outcome(protocol string, reason Reason) {
	m.flows.WithLabelValues(protocol, reason.String()).Inc()
}

func (m *metrics) flow(k labelKey, w *Workload) *flowSeries {
	return m.flowCache.get(k, m, func(k *labelKey) *flowSeries {
		v := k.values(w)[:len(flowLabels)]
		return &flowSeries{
			opened:   m.opened.WithLabelValues(v...),
			closed:   m.closed.WithLabelValues(v...),
			sent:     m.sent.WithLabelValues(v...),
			received: m.received.WithLabelValues(v...),
		}
	})
}

func (m *metrics) request(k labelKey, w *Workload) *requestSeries {
	return m.requestCache.get(k, m, func(k *labelKey) *requestSeries {
		v := k.values(w)
		s := &requestSeries{
			total:         m.requests.WithLabelValues(v...),
			duration:      m.duration.WithLabelValues(v...),
			requestBytes:  m.requestBytes.WithLabelValues(v...),
			responseBytes: m.responseBytes.WithLabelValues(v...),
		}
		if k.protocol == GRPC {
			p := v[:len(peerLabels)]
			s.requestMessages = m.requestMessages.WithLabelValues(p...)
			s.responseMessages = m.responseMessages.WithLabelValues(p...)
		}
		return s
	})
}
