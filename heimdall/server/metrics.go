// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests  *prometheus.CounterVec // by code
	throttled *prometheus.CounterVec // by limit
	duration  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, cert *Certificate) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nasp_heimdall_requests_total", Help: "Answers to laptops, by HTTP status.",
		}, []string{"code"}),
		throttled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nasp_heimdall_throttled_total", Help: "Requests that met a limit: source, token or in_flight.",
		}, []string{"limit"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "nasp_heimdall_request_duration_seconds", Help: "Time to answer a laptop.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
	if r == nil {
		return m, nil
	}
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nasp_heimdall_certificate_expiry_timestamp_seconds", Help: "End of the server's certificate; 0: none is loaded.",
	}, cert.expiry)
	for _, c := range []prometheus.Collector{m.requests, m.throttled, m.duration, expiry} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
