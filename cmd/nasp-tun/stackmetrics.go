// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nasp-tun/nasp-tun/netstack"
)

// A stackCollector reads the figures of the network stack when it is scraped.
// Package netstack knows nothing of Prometheus.
type stackCollector struct{ stats func() netstack.Stats }

// A figure is one number of the stack under a name, with the values of the
// name's labels.
type figure struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels []string
	value  func(*netstack.Stats) uint64
}

var (
	descPackets = stackDesc("device_packets_total", "Packets that crossed the TUN; a superpacket is one.", "direction")
	descBytes   = stackDesc("device_bytes_total", "Bytes that crossed the TUN.", "direction")
	descDropped = stackDesc("device_dropped_total", "Packets that did not cross the TUN.", "reason")
	descOpen    = stackDesc("flows_open", "Flows that are open now.", "protocol")
	descFlows   = stackDesc("flows_total", "Flows by what became of them.", "protocol", "outcome")
	descLimited = stackDesc("flows_limited_total", "SYNs and datagrams dropped since a limit was reached.", "protocol", "limit")
	descTCP     = stackDesc("tcp_events_total", "What the TCP of the stack towards the program has met.", "event")
	descEcho    = stackDesc("pings_total", "Pings by their answer.", "answer")
)

func stackDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nasp_tun_netstack_"+name, help, labels, nil)
}

const (
	count = prometheus.CounterValue
	gauge = prometheus.GaugeValue
)

// figures is every number that the stack keeps.
var figures = []figure{
	{descPackets, count, []string{"from_program"}, func(s *netstack.Stats) uint64 { return s.Device.RxPackets }},
	{descPackets, count, []string{"to_program"}, func(s *netstack.Stats) uint64 { return s.Device.TxPackets }},
	{descBytes, count, []string{"from_program"}, func(s *netstack.Stats) uint64 { return s.Device.RxBytes }},
	{descBytes, count, []string{"to_program"}, func(s *netstack.Stats) uint64 { return s.Device.TxBytes }},
	{descDropped, count, []string{"malformed"}, func(s *netstack.Stats) uint64 { return s.Device.RxMalformed }},
	{descDropped, count, []string{"checksum"}, func(s *netstack.Stats) uint64 { return s.Device.RxChecksum }},
	{descDropped, count, []string{"offload"}, func(s *netstack.Stats) uint64 { return s.Device.RxOffload }},
	{descDropped, count, []string{"queue_full"}, func(s *netstack.Stats) uint64 { return s.Device.TxNoBuffer }},
	{descDropped, count, []string{"write_failed"}, func(s *netstack.Stats) uint64 { return s.Device.TxFailed }},

	{descOpen, gauge, []string{"tcp"}, func(s *netstack.Stats) uint64 { return uint64(s.TCP.Open) }},
	{descOpen, gauge, []string{"tcp_pending"}, func(s *netstack.Stats) uint64 { return uint64(s.TCP.InFlight) }},
	{descOpen, gauge, []string{"udp"}, func(s *netstack.Stats) uint64 { return uint64(s.UDP.Sessions) }},
	{descFlows, count, []string{"tcp", "accepted"}, func(s *netstack.Stats) uint64 { return s.TCP.Accepted }},
	{descFlows, count, []string{"tcp", "rejected"}, func(s *netstack.Stats) uint64 { return s.TCP.Rejected }},
	{descFlows, count, []string{"tcp", "failed"}, func(s *netstack.Stats) uint64 { return s.TCP.Failed }},
	{descFlows, count, []string{"tcp", "client_gone"}, func(s *netstack.Stats) uint64 { return s.TCP.Gone }},
	{descFlows, count, []string{"udp", "accepted"}, func(s *netstack.Stats) uint64 { return s.UDP.Accepted }},
	{descFlows, count, []string{"udp", "rejected"}, func(s *netstack.Stats) uint64 { return s.UDP.Rejected }},
	{descFlows, count, []string{"udp", "idle"}, func(s *netstack.Stats) uint64 { return s.UDP.Idle }},
	{descFlows, count, []string{"udp", "evicted"}, func(s *netstack.Stats) uint64 { return s.UDP.Evicted }},

	{descLimited, count, []string{"tcp", "in_flight"}, func(s *netstack.Stats) uint64 { return s.TCP.RefusedInFlight }},
	{descLimited, count, []string{"tcp", "in_flight_per_source"}, func(s *netstack.Stats) uint64 { return s.TCP.RefusedPerSource }},
	{descLimited, count, []string{"tcp", "flows"}, func(s *netstack.Stats) uint64 { return s.TCP.RefusedFlows }},
	{descLimited, count, []string{"udp", "sessions"}, func(s *netstack.Stats) uint64 { return s.UDP.RefusedSessions }},
	{descLimited, count, []string{"udp", "sessions_per_source"}, func(s *netstack.Stats) uint64 { return s.UDP.RefusedPerSource }},
	{descLimited, count, []string{"udp", "queue"}, func(s *netstack.Stats) uint64 { return s.UDP.Overflow }},

	{descTCP, count, []string{"duplicate_syn"}, func(s *netstack.Stats) uint64 { return s.TCP.DuplicateSYN }},
	{descTCP, count, []string{"reused_time_wait"}, func(s *netstack.Stats) uint64 { return s.TCP.ReusedTimeWait }},
	{descTCP, count, []string{"retransmit"}, func(s *netstack.Stats) uint64 { return s.TCP.Retransmits }},
	{descTCP, count, []string{"timeout"}, func(s *netstack.Stats) uint64 { return s.TCP.Timeouts }},
	{descTCP, count, []string{"reset_sent"}, func(s *netstack.Stats) uint64 { return s.TCP.ResetsSent }},
	{descTCP, count, []string{"reset_received"}, func(s *netstack.Stats) uint64 { return s.TCP.ResetsReceived }},
	{descTCP, count, []string{"checksum_error"}, func(s *netstack.Stats) uint64 { return s.TCP.ChecksumErrors }},

	{descEcho, count, []string{"answered"}, func(s *netstack.Stats) uint64 { return s.ICMP.EchoAnswered }},
	{descEcho, count, []string{"unreachable"}, func(s *netstack.Stats) uint64 { return s.ICMP.EchoUnreachable }},
}

// Describe implements prometheus.Collector.
func (c *stackCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descPackets, descBytes, descDropped, descOpen, descFlows, descLimited, descTCP, descEcho,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stackCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	for i := range figures {
		f := &figures[i]
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, float64(f.value(&s)), f.labels...)
	}
}
