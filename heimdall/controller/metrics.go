// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the controller's. They outlive a manager that had to end.
type Metrics struct {
	tokens   *prometheus.CounterVec // by result
	warnings *prometheus.CounterVec // by reason
	expiry   *prometheus.GaugeVec   // by group
}

// NewMetrics registers the metrics; nil: nobody sees them.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nasp_heimdall_tokens_total", Help: "Access tokens of groups: issued, renewed, removed, failed.",
		}, []string{"result"}),
		warnings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nasp_heimdall_warnings_total", Help: "Warnings about groups, by the reason of their Event.",
		}, []string{"reason"}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nasp_heimdall_token_expiry_timestamp_seconds", Help: "End of the access token of a group.",
		}, []string{"namespace", "workloadgroup"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.tokens, m.warnings, m.expiry} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
