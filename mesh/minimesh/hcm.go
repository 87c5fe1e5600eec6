// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	udpapb "github.com/cncf/xds/go/udpa/type/v1"
	accesslogpb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corspb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstatspb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	routerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	requestidpb "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	metadatapb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingpb "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const filterHTTP = "envoy.filters.network.http_connection_manager"

// httpManager is the HTTP side of an outbound listener, with every filter
// that istiod puts into a plain sidecar.
func (w *world) httpManager(listener, routes, namespace string) *listenerpb.Filter {
	m := &hcmpb.HttpConnectionManager{
		StatPrefix: "outbound_" + listener + ";",
		RouteSpecifier: &hcmpb.HttpConnectionManager_Rds{Rds: &hcmpb.Rds{
			ConfigSource: overADS(), RouteConfigName: routes,
		}},
		HttpFilters: []*hcmpb.HttpFilter{
			httpFilter("istio.metadata_exchange", packed(&udpapb.TypedStruct{
				TypeUrl: "type.googleapis.com/io.istio.http.peer_metadata.Config",
				Value: object(map[string]any{
					"upstream_discovery": []any{
						map[string]any{"istio_headers": map[string]any{}},
						map[string]any{"workload_discovery": map[string]any{}},
					},
					"upstream_propagation": []any{map[string]any{"istio_headers": map[string]any{}}},
				}),
			})),
			httpFilter("envoy.filters.http.grpc_stats", packed(&grpcstatspb.FilterConfig{
				EmitFilterState:        true,
				PerMethodStatSpecifier: &grpcstatspb.FilterConfig_StatsForAllMethods{StatsForAllMethods: wrapperspb.Bool(false)},
			})),
			httpFilter("istio.alpn", alpnOverride()),
			httpFilter("envoy.filters.http.fault", packed(&faultpb.HTTPFault{})),
			httpFilter("envoy.filters.http.cors", packed(&corspb.Cors{})),
			httpFilter("envoy.filters.http.router", packed(&routerpb.Router{})),
		},
		Tracing: &hcmpb.HttpConnectionManager_Tracing{
			ClientSampling:  &typepb.Percent{Value: 100},
			RandomSampling:  &typepb.Percent{Value: 1},
			OverallSampling: &typepb.Percent{Value: 100},
			CustomTags:      w.traceTags(namespace),
		},
		StreamIdleTimeout:            durationpb.New(0),
		AccessLog:                    []*accesslogpb.AccessLog{accessLog()},
		UseRemoteAddress:             wrapperspb.Bool(false),
		Proxy_100Continue:            true,
		UpgradeConfigs:               []*hcmpb.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		NormalizePath:                wrapperspb.Bool(true),
		PathWithEscapedSlashesAction: hcmpb.HttpConnectionManager_KEEP_UNCHANGED,
		RequestIdExtension: &hcmpb.RequestIDExtension{TypedConfig: packed(&requestidpb.UuidRequestIdConfig{
			UseRequestIdForTraceSampling: wrapperspb.Bool(true),
		})},
	}
	return &listenerpb.Filter{Name: filterHTTP, ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: packed(m)}}
}

// traceTags are the tags of a span: what the policies of a dry run would have
// done, and who the client is.
func (w *world) traceTags(namespace string) []*tracingpb.CustomTag {
	var out []*tracingpb.CustomTag
	for _, policy := range []string{"allow", "deny"} {
		for _, kind := range [][2]string{{"policy.name", "effective_policy_id"}, {"policy.result", "engine_result"}} {
			out = append(out, &tracingpb.CustomTag{
				Tag: "istio.authorization.dry_run." + policy + "_" + kind[0],
				Type: &tracingpb.CustomTag_Metadata_{Metadata: &tracingpb.CustomTag_Metadata{
					Kind: &metadatapb.MetadataKind{Kind: &metadatapb.MetadataKind_Request_{Request: &metadatapb.MetadataKind_Request{}}},
					MetadataKey: &metadatapb.MetadataKey{
						Key: "envoy.filters.http.rbac",
						Path: []*metadatapb.MetadataKey_PathSegment{{
							Segment: &metadatapb.MetadataKey_PathSegment_Key{Key: "istio_dry_run_" + policy + "_shadow_" + kind[1]},
						}},
					},
				}},
			})
		}
	}
	for _, tag := range [][2]string{
		{"canonical_revision", "latest"},
		{"canonical_service", "unknown"},
		{"cluster_id", w.clusterID},
		{"mesh_id", w.trustDomain}, // istiod's default
		{"namespace", namespace},
	} {
		out = append(out, &tracingpb.CustomTag{
			Tag:  "istio." + tag[0],
			Type: &tracingpb.CustomTag_Literal_{Literal: &tracingpb.CustomTag_Literal{Value: tag[1]}},
		})
	}
	return out
}

func httpFilter(name string, config *anypb.Any) *hcmpb.HttpFilter {
	return &hcmpb.HttpFilter{Name: name, ConfigType: &hcmpb.HttpFilter_TypedConfig{TypedConfig: config}}
}

// alpnOverride is the configuration of Istio's ALPN filter: what to offer
// upstream by the protocol spoken downstream. The message lives in istio/proxy,
// so it is written by hand: repeated AlpnOverride alpn_override = 1 with
// {Protocol upstream_protocol = 1; repeated string alpn_override = 2}.
func alpnOverride() *anypb.Any {
	offers := [][]string{
		{"istio-http/1.0", "istio", "http/1.0"},
		{"istio-http/1.1", "istio", "http/1.1"},
		{"istio-h2", "istio", "h2"},
	}
	var b []byte
	for protocol, alpn := range offers {
		var one []byte
		if protocol != 0 { // proto3 leaves zeros out
			one = protowire.AppendTag(one, 1, protowire.VarintType)
			one = protowire.AppendVarint(one, uint64(protocol))
		}
		for _, name := range alpn {
			one = protowire.AppendTag(one, 2, protowire.BytesType)
			one = protowire.AppendString(one, name)
		}
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, one)
	}
	return &anypb.Any{
		TypeUrl: "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
		Value:   b,
	}
}
