// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A collector reads the state of the node when it is scraped, so that nothing
// has to be counted twice.
type collector struct{ m *Mesh }

var (
	descReady      = desc("ready", "1 when the node has an identity and a whole configuration.")
	descConnected  = desc("xds_connected", "1 while the stream to istiod is up.")
	descReconnects = desc("xds_reconnects_total", "Streams to istiod that were opened after the first.")
	descRejected   = desc("xds_rejected", "Resources of istiod whose newest version could not be used.")
	descSyncAge    = desc("xds_last_update_seconds", "Unix time of the last response of istiod.")
	descExpiry     = desc("certificate_expiry_seconds", "Unix time at which the certificate ends.")
	descIgnored    = desc("ignored_features", "Configured features that have no effect here.", "feature")
	descDNS        = desc("dns_queries_total", "Questions of programs by what became of them.", "outcome")
	descUpstream   = desc("upstream_connections", "Connections to endpoints now.", "state")
	descEvents     = desc("upstream_events_total", "What happened to connections to endpoints.", "event")
)

var descs = []*prometheus.Desc{
	descReady, descConnected, descReconnects, descRejected, descSyncAge, descExpiry, descIgnored,
	descDNS, descUpstream, descEvents,
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nasp_tun_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	// Not the whole Status, which lists every service to count them.
	istiod, q := c.m.istiodStatus(c.m.xds.Status()), c.m.dnsStatus()
	gauge(descReady, truth(c.m.isReady()))
	gauge(descConnected, truth(istiod.Connected))
	count(descReconnects, float64(istiod.Reconnects))
	gauge(descRejected, float64(len(istiod.Rejected)))
	gauge(descSyncAge, unix(istiod.LastUpdate))
	gauge(descExpiry, unix(c.m.identityStatus().NotAfter))
	if s := c.m.catalog.Snapshot(); s != nil {
		for f, n := range s.Ignored() {
			gauge(descIgnored, float64(n), f)
		}
	}
	for outcome, n := range map[string]uint64{
		"answered": q.Answered, "forwarded": q.Forwarded, "failed": q.Failed,
		"refused": q.Refused, "malformed": q.Malformed,
	} {
		count(descDNS, float64(n), outcome)
	}
	up := c.m.up.Status()
	gauge(descUpstream, float64(up.Open-up.Idle), "active")
	gauge(descUpstream, float64(up.Idle), "idle")
	for event, n := range map[string]int64{
		"dial": up.Dials, "dial_error": up.DialErrors, "reused": up.Reused, "stale": up.Stale,
		"retired": up.Retired, "evicted": up.Evicted, "overflow": up.Overflows, "name_error": up.NameErrors,
	} {
		count(descEvents, float64(n), event)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1e3
}
