// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// filters reads the network filters of a chain up to the one that ends it.
func (c *FilterChain) filters(list []*listenerv3.Filter, n *notes) error {
	for _, f := range list {
		config := f.GetTypedConfig()
		var tcp tcpv3.TcpProxy
		switch ok, err := open(config, &tcp); {
		case err != nil:
			return fmt.Errorf("filter %q: %w", f.GetName(), err)
		case ok:
			return c.tcpProxy(&tcp, n)
		}
		var hcm hcmv3.HttpConnectionManager
		switch ok, err := open(config, &hcm); {
		case err != nil:
			return fmt.Errorf("filter %q: %w", f.GetName(), err)
		case ok:
			return c.httpManager(&hcm, n)
		}
		switch classify(f.GetName(), config) {
		case telemetry:
		case guard:
			c.refuse("network filter "+f.GetName(), n)
			return nil
		default:
			n.add("network filter ", f.GetName())
		}
	}
	c.refuse("no filter that ends the chain", n)
	return nil
}

// A class says what leaving out a filter means.
type class uint8

const (
	// optional: something is missing, but what is let through is the same.
	optional class = iota
	// telemetry: another part of this program does its work.
	telemetry
	// guard: it decides what may pass, or its nature cannot be told. A chain
	// with such a filter refuses, since passing would be open.
	guard
)

// optionalFilters are known to change or count, never to forbid. Keys are the
// names of their messages, which users cannot choose.
var optionalFilters = map[string]class{
	"stats.PluginConfig": telemetry,

	"io.istio.http.peer_metadata.Config":                 optional,
	"envoy.tcp.metadataexchange.config.MetadataExchange": optional,

	"envoy.extensions.filters.http.grpc_stats.v3.FilterConfig":                   optional,
	"envoy.extensions.filters.http.grpc_web.v3.GrpcWeb":                          optional,
	"envoy.extensions.filters.http.grpc_http1_bridge.v3.Config":                  optional,
	"envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder":   optional,
	"envoy.extensions.filters.http.compressor.v3.Compressor":                     optional,
	"envoy.extensions.filters.http.decompressor.v3.Decompressor":                 optional,
	"envoy.extensions.filters.http.buffer.v3.Buffer":                             optional,
	"envoy.extensions.filters.http.tap.v3.Tap":                                   optional,
	"envoy.extensions.filters.http.set_filter_state.v3.Config":                   optional,
	"envoy.extensions.filters.http.stateful_session.v3.StatefulSession":          optional,
	"envoy.extensions.filters.http.alternate_protocols_cache.v3.FilterConfig":    optional,
	"envoy.extensions.filters.http.header_to_metadata.v3.Config":                 optional,
	"envoy.extensions.filters.http.header_mutation.v3.HeaderMutation":            optional,
	"envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec":              optional,
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit":            optional,
	"envoy.extensions.filters.http.ratelimit.v3.RateLimit":                       optional,
	"envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit":            optional,
	"envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency":  optional,
	"envoy.extensions.filters.http.admission_control.v3.AdmissionControl":        optional,
	"envoy.extensions.filters.http.on_demand.v3.OnDemand":                        optional,
	"envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig":        optional,
	"envoy.extensions.filters.network.set_filter_state.v3.Config":                optional,
	"envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig": optional,
	"envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit":         optional,
	"envoy.extensions.filters.network.ratelimit.v3.RateLimit":                    optional,
	"envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit":       optional,
	"envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy":                 optional,
	"envoy.extensions.filters.network.mysql_proxy.v3.MySQLProxy":                 optional,
	"envoy.extensions.filters.network.postgres_proxy.v3alpha.PostgresProxy":      optional,
	"envoy.extensions.filters.network.zookeeper_proxy.v3.ZooKeeperProxy":         optional,
	"envoy.extensions.filters.network.kafka_broker.v3.KafkaBroker":               optional,
}

// classify judges a filter that is not built here. What is not known to be
// harmless is taken for a guard: RBAC, JWT, external authorization and
// processing, scripts, Wasm, and whatever is new.
func classify(name string, config *anypb.Any) class {
	typ := typeName(config)
	if class, ok := optionalFilters[typ]; ok {
		return class
	}
	// Istio before 1.17 had its statistics as Wasm, under this name.
	if strings.HasPrefix(name, "istio.stats") {
		return telemetry
	}
	return guard
}

// accessLogs notes loggers: records are made, but as this program is told to.
func (n *notes) accessLogs(logs []*accesslogv3.AccessLog) {
	for _, l := range logs {
		n.add("access log ", l.GetName())
	}
}

var tcpFields = fields("cluster", "weighted_clusters", "idle_timeout", "max_downstream_connection_duration",
	"access_log", "tunneling_config", "stat_prefix", "access_log_flush_interval", "flush_access_log_on_connected",
	"access_log_options", "max_downstream_connection_duration_jitter_percentage")

func (c *FilterChain) tcpProxy(pb *tcpv3.TcpProxy, n *notes) error {
	n.rest("tcp_proxy", pb, tcpFields)
	n.accessLogs(pb.GetAccessLog())
	if pb.GetTunnelingConfig() != nil {
		c.refuse("tcp_proxy.tunneling_config", n)
		return nil
	}
	// No idle limit where none is given: Envoy's hour would cut connections
	// that the client's own kernel keeps alive.
	t := &TCPProxy{
		IdleTimeout: duration(pb.GetIdleTimeout(), 0),
		MaxDuration: duration(pb.GetMaxDownstreamConnectionDuration(), 0),
	}
	switch spec := pb.GetClusterSpecifier().(type) {
	case *tcpv3.TcpProxy_Cluster:
		t.Clusters = []WeightedCluster{{Name: intern(spec.Cluster), Weight: 1}}
	case *tcpv3.TcpProxy_WeightedClusters:
		for _, w := range spec.WeightedClusters.GetClusters() {
			if w.GetMetadataMatch() != nil {
				n.add("tcp_proxy.weighted_clusters.metadata_match")
			}
			t.Clusters = append(t.Clusters, WeightedCluster{Name: intern(w.GetName()), Weight: w.GetWeight()})
		}
	}
	if err := checkWeights(t.Clusters); err != nil {
		return fmt.Errorf("tcp_proxy: %w", err)
	}
	c.TCP = t
	return nil
}

// checkWeights refuses what could not be drawn from, as Envoy does.
func checkWeights(clusters []WeightedCluster) error {
	var sum uint64
	for i := range clusters {
		if clusters[i].Name == "" {
			return fmt.Errorf("cluster %d without a name", i)
		}
		sum += uint64(clusters[i].Weight)
	}
	if sum == 0 {
		return fmt.Errorf("no cluster with a weight")
	}
	return nil
}
