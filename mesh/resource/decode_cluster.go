// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 control planes still send the fields that Envoy has deprecated

package resource

import (
	"cmp"
	"fmt"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// What Envoy does where a cluster says nothing.
const (
	defaultConnectTimeout = 5 * time.Second
	defaultDNSRefresh     = 5 * time.Second
	// minDNSRefresh is the shortest rate that Envoy accepts.
	minDNSRefresh       = time.Millisecond
	defaultBreaker      = 1024
	defaultRetryBreaker = 3
)

// clusterFields are understood. Those of the second line have no meaning here:
// they name statistics, or size buffers and tune timers that do not exist.
var clusterFields = fields("transport_socket_matches", "name", "type", "cluster_type", "eds_cluster_config",
	"connect_timeout", "lb_policy", "load_assignment", "max_requests_per_connection", "circuit_breakers",
	"typed_extension_protocol_options", "common_http_protocol_options", "http2_protocol_options",
	"http_protocol_options", "dns_refresh_rate", "dns_lookup_family", "lb_config", "ring_hash_lb_config",
	"maglev_lb_config", "least_request_lb_config", "round_robin_lb_config", "common_lb_config",
	"transport_socket", "metadata", "upstream_connection_options", "filters", "load_balancing_policy",
	"protocol_selection",
	"alt_stat_name", "stats_matcher", "per_connection_buffer_limit_bytes", "cleanup_interval",
	"wait_for_warm_on_init", "track_timeout_budgets", "track_cluster_stats", "dns_failure_refresh_rate",
	"dns_jitter")

// DecodeCluster reads a Cluster.
func DecodeCluster(a *anypb.Any) (*Cluster, error) {
	var pb clusterv3.Cluster
	if err := unpack("cluster", a, &pb); err != nil {
		return nil, err
	}
	c, err := decodeCluster(&pb)
	if err != nil {
		return nil, fmt.Errorf("decode cluster %q: %w", pb.GetName(), err)
	}
	return c, nil
}

func decodeCluster(pb *clusterv3.Cluster) (*Cluster, error) {
	if pb.GetName() == "" {
		return nil, fmt.Errorf("no name")
	}
	var n notes
	c := &Cluster{
		Name:                     intern(pb.GetName()),
		ConnectTimeout:           duration(pb.GetConnectTimeout(), defaultConnectTimeout),
		Breakers:                 decodeBreakers(pb.GetCircuitBreakers(), &n),
		MaxRequestsPerConnection: pb.GetMaxRequestsPerConnection().GetValue(),
		Istio:                    decodeIstioMeta(pb.GetMetadata()),
		KeepAlive:                decodeKeepAlive(pb.GetUpstreamConnectionOptions(), &n),
	}
	n.rest("cluster", pb, clusterFields)
	if err := c.discovery(pb, &n); err != nil {
		return nil, err
	}
	if err := c.balance(pb, &n); err != nil {
		return nil, err
	}
	if err := c.transports(pb); err != nil {
		return nil, err
	}
	if err := c.protocol(pb, &n); err != nil {
		return nil, err
	}
	for _, f := range pb.GetFilters() {
		n.add("upstream filter ", f.GetName())
	}
	c.Ignored = n.done()
	return c, nil
}

// discovery reads where the endpoints come from.
func (c *Cluster) discovery(pb *clusterv3.Cluster, n *notes) error {
	c.DNSRefresh = max(duration(pb.GetDnsRefreshRate(), defaultDNSRefresh), minDNSRefresh)
	switch pb.GetDnsLookupFamily() {
	case clusterv3.Cluster_V4_ONLY:
		c.DNSFamily = DNSV4Only
	case clusterv3.Cluster_V6_ONLY:
		c.DNSFamily = DNSV6Only
	case clusterv3.Cluster_V4_PREFERRED:
		c.DNSFamily = DNSV4Preferred
	case clusterv3.Cluster_ALL:
		c.DNSFamily = DNSAll
	}
	if pb.GetClusterType() != nil {
		return c.customDiscovery(pb, n)
	}
	switch pb.GetType() {
	case clusterv3.Cluster_STATIC:
		c.Discovery = Static
	case clusterv3.Cluster_STRICT_DNS:
		c.Discovery = StrictDNS
	case clusterv3.Cluster_LOGICAL_DNS:
		c.Discovery = LogicalDNS
	case clusterv3.Cluster_EDS:
		c.Discovery = EDS
		c.EDSName = intern(cmp.Or(pb.GetEdsClusterConfig().GetServiceName(), pb.GetName()))
		return nil
	case clusterv3.Cluster_ORIGINAL_DST:
		c.Discovery = OriginalDst
		return nil
	default:
		return fmt.Errorf("type %d", pb.GetType())
	}
	return c.inline(pb)
}

// customDiscovery reads a cluster whose kind is an extension. One that is not
// known has no endpoints, so that what is routed there is refused.
func (c *Cluster) customDiscovery(pb *clusterv3.Cluster, n *notes) error {
	var dns dnsv3.DnsCluster
	ok, err := open(pb.GetClusterType().GetTypedConfig(), &dns)
	if err != nil {
		return fmt.Errorf("cluster type %q: %w", pb.GetClusterType().GetName(), err)
	}
	if !ok {
		n.add("cluster type ", pb.GetClusterType().GetName())
		return nil
	}
	c.Discovery = StrictDNS
	if dns.GetAllAddressesInSingleEndpoint() {
		c.Discovery = LogicalDNS
	}
	c.DNSRefresh = max(duration(dns.GetDnsRefreshRate(), defaultDNSRefresh), minDNSRefresh)
	switch dns.GetDnsLookupFamily() {
	case commonv3.DnsLookupFamily_V4_ONLY:
		c.DNSFamily = DNSV4Only
	case commonv3.DnsLookupFamily_V6_ONLY:
		c.DNSFamily = DNSV6Only
	case commonv3.DnsLookupFamily_V4_PREFERRED:
		c.DNSFamily = DNSV4Preferred
	case commonv3.DnsLookupFamily_ALL:
		c.DNSFamily = DNSAll
	}
	return c.inline(pb)
}

func (c *Cluster) inline(pb *clusterv3.Cluster) error {
	if pb.GetLoadAssignment() == nil {
		return nil
	}
	e, err := decodeEndpoints(pb.GetLoadAssignment())
	if err != nil {
		return fmt.Errorf("endpoints: %w", err)
	}
	e.Name = c.Name
	c.Endpoints = e
	return nil
}

// transports reads how connections are secured.
func (c *Cluster) transports(pb *clusterv3.Cluster) (err error) {
	if c.Transport, err = decodeTransport(pb.GetTransportSocket()); err != nil {
		return err
	}
	for _, m := range pb.GetTransportSocketMatches() {
		t, err := decodeTransport(m.GetTransportSocket())
		if err != nil {
			return err
		}
		if t.Kind != Unsupported {
			t.Name = intern(m.GetName())
		}
		c.Transports = append(c.Transports, TransportMatch{
			Name: intern(m.GetName()), Match: stringMap(m.GetMatch()), Transport: t,
		})
	}
	if pb.GetTransportSocketMatcher() != nil {
		// It would choose where transport_socket_matches do not; without it
		// the choice could be clear text.
		c.Transports = nil
		c.Transport = unsupported("transport_socket_matcher")
	}
	return nil
}

var thresholdFields = fields("priority", "max_connections", "max_pending_requests", "max_requests", "max_retries",
	"track_remaining", "max_connection_pools")

// decodeBreakers reads the limits of the default priority, the only one that
// Istio uses.
func decodeBreakers(cb *clusterv3.CircuitBreakers, n *notes) Breakers {
	b := Breakers{defaultBreaker, defaultBreaker, defaultBreaker, defaultRetryBreaker}
	if len(cb.GetPerHostThresholds()) > 0 {
		n.add("cluster.circuit_breakers.per_host_thresholds")
	}
	for _, t := range cb.GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue
		}
		n.rest("cluster.circuit_breakers", t, thresholdFields)
		for _, limit := range []struct {
			to  *uint32
			set bool
			v   uint32
		}{
			{&b.MaxConnections, t.GetMaxConnections() != nil, t.GetMaxConnections().GetValue()},
			{&b.MaxPending, t.GetMaxPendingRequests() != nil, t.GetMaxPendingRequests().GetValue()},
			{&b.MaxRequests, t.GetMaxRequests() != nil, t.GetMaxRequests().GetValue()},
			{&b.MaxRetries, t.GetMaxRetries() != nil, t.GetMaxRetries().GetValue()},
		} {
			if limit.set {
				*limit.to = limit.v
			}
		}
		break // Envoy takes the first of a priority
	}
	return b
}

func decodeIstioMeta(m *corev3.Metadata) IstioMeta {
	md := metadata(m, "istio")
	meta := IstioMeta{
		Subset:       intern(md["subset"].GetStringValue()),
		ALPNOverride: intern(md["alpn_override"].GetStringValue()),
		External:     md["external"].GetBoolValue(),
	}
	for _, v := range md["services"].GetListValue().GetValues() {
		s := v.GetStructValue().GetFields()
		meta.Services = append(meta.Services, ServiceRef{
			Host:      intern(s["host"].GetStringValue()),
			Name:      intern(s["name"].GetStringValue()),
			Namespace: intern(s["namespace"].GetStringValue()),
		})
	}
	return meta
}

var connectionFields = fields("tcp_keepalive", "happy_eyeballs_config", "set_local_interface_name_on_upstream_connections")

func decodeKeepAlive(o *clusterv3.UpstreamConnectionOptions, n *notes) *KeepAlive {
	n.rest("cluster.upstream_connection_options", o, connectionFields)
	k := o.GetTcpKeepalive()
	if k == nil {
		return nil
	}
	// Bounded as the kernel bounds them: 32767 s and 127 probes.
	seconds := func(v uint32) time.Duration { return time.Duration(min(v, math.MaxInt16)) * time.Second }
	return &KeepAlive{
		Idle:     seconds(k.GetKeepaliveTime().GetValue()),
		Interval: seconds(k.GetKeepaliveInterval().GetValue()),
		Probes:   int(min(k.GetKeepaliveProbes().GetValue(), math.MaxInt8)),
	}
}
