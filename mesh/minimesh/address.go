// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"net/netip"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	origdstpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatapb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	accesslogpb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
)

// What istiod adds once it serves an ambient mesh: the listener and the cluster
// through which HBONE leaves a sidecar, and the addresses of the workload API.

const (
	connectOriginate = "connect_originate"
	originalDst      = "envoy.filters.listener.original_dst"
	hbonePort        = 15008
)

// ambient reports whether some service is reached by tunnel only.
func (w *world) ambient() bool {
	for i := range w.services {
		if w.services[i].TLS == HBONE {
			return true
		}
	}
	return false
}

// tunnelListener is the internal listener that endpoints of HBONE name.
func tunnelListener() *listenerpb.Listener {
	return &listenerpb.Listener{
		Name:              connectOriginate,
		ListenerSpecifier: &listenerpb.Listener_InternalListener{InternalListener: &listenerpb.Listener_InternalListenerConfig{}},
		UseOriginalDst:    wrapperspb.Bool(false),
		ListenerFilters: []*listenerpb.ListenerFilter{{
			Name:       originalDst,
			ConfigType: &listenerpb.ListenerFilter_TypedConfig{TypedConfig: packed(&origdstpb.OriginalDst{})},
		}},
		FilterChains: []*listenerpb.FilterChain{{Filters: []*listenerpb.Filter{{
			Name: filterTCP,
			ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: packed(&tcppb.TcpProxy{
				StatPrefix:       connectOriginate,
				ClusterSpecifier: &tcppb.TcpProxy_Cluster{Cluster: connectOriginate},
				TunnelingConfig:  &tcppb.TcpProxy_TunnelingConfig{Hostname: "%DOWNSTREAM_LOCAL_ADDRESS%"},
				AccessLog:        []*accesslogpb.AccessLog{accessLog("UF")},
			})},
		}}}},
		AccessLog: []*accesslogpb.AccessLog{accessLog("NR")},
	}
}

// tunnelCluster is where that listener leads to.
func (w *world) tunnelCluster() *clusterpb.Cluster {
	c := passthrough(connectOriginate, nil)
	c.AltStatName = connectOriginate + ";"
	c.CleanupInterval = durationpb.New(tunnelCleanup)
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: packed(&httppb.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corepb.HttpProtocolOptions{IdleTimeout: durationpb.New(tunnelIdle)},
		UpstreamProtocolOptions:   explicitHTTP2(&corepb.Http2ProtocolOptions{AllowConnect: true}),
	})}
	c.LbConfig = &clusterpb.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &clusterpb.Cluster_OriginalDstLbConfig{
		UpstreamPortOverride: wrapperspb.UInt32(hbonePort),
		MetadataKey: &metadatapb.MetadataKey{
			Key: originalDst,
			Path: []*metadatapb.MetadataKey_PathSegment{{
				Segment: &metadatapb.MetadataKey_PathSegment_Key{Key: "waypoint"},
			}},
		},
	}}
	c.TransportSocket = upstreamTLS("tls", &tlspb.UpstreamTlsContext{CommonTlsContext: commonTLS(
		tlspb.TlsParameters_TLSv1_3, []string{"h2"}, &tlspb.CertificateValidationContext{
			MatchTypedSubjectAltNames: []*tlspb.SubjectAltNameMatcher{{
				SanType: tlspb.SubjectAltNameMatcher_URI,
				Matcher: &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Prefix{
					Prefix: "spiffe://" + w.trustDomain + "/",
				}},
			}},
		})})
	return c
}

// addresses are the workloads and services of the workload API, by the name
// of their resource. The messages live in istio.io/istio, so they are written
// by hand; the numbers are those of its workload.proto.
func (w *world) addresses() map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	for i := range w.services {
		s := &w.services[i]
		out[s.Namespace+"/"+s.host()] = packedAddress(2, serviceMessage(s))
		for j, e := range s.Endpoints {
			uid := w.clusterID + "//Pod/" + s.Namespace + "/" + e.Name
			if a, ok := s.pod(j); ok {
				out[uid] = packedAddress(1, w.workloadMessage(s, e, uid, a))
			}
		}
	}
	return out
}

// pod returns the address of an endpoint.
func (s *placed) pod(endpoint int) (netip.Addr, bool) {
	for _, p := range s.Ports {
		if a, ok := s.where[endpoint][p.Number]; ok {
			return a.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// packedAddress wraps one side of Address{oneof workload = 1, service = 2}.
func packedAddress(side protowire.Number, m []byte) *anypb.Any {
	return &anypb.Any{TypeUrl: addressType, Value: appendField(nil, side, string(m))}
}

func (w *world) workloadMessage(s *placed, e Endpoint, uid string, a netip.Addr) []byte {
	const (
		hbone = 1 // TunnelProtocol
		pod   = 2 // WorkloadType
	)
	b := appendField(nil, 1, e.Name)
	b = appendField(b, 2, s.Namespace)
	b = appendField(b, 3, string(a.AsSlice()))
	if s.TLS == HBONE {
		b = appendVarint(b, 5, hbone)
	}
	b = appendField(b, 7, s.account())
	b = appendField(b, 10, s.Name)
	b = appendField(b, 11, "latest")
	b = appendVarint(b, 12, pod)
	b = appendField(b, 13, s.Name)
	if e.Unhealthy {
		b = appendVarint(b, 17, 1)
	}
	b = appendField(b, 18, w.clusterID)
	b = appendField(b, 20, uid)
	var ports []byte
	for _, p := range s.Ports {
		ports = appendField(ports, 1, string(portMessage(p)))
	}
	services := appendField(nil, 1, s.Namespace+"/"+s.host())
	return appendField(b, 22, string(appendField(services, 2, string(ports))))
}

func serviceMessage(s *placed) []byte {
	b := appendField(nil, 1, s.Name)
	b = appendField(b, 2, s.Namespace)
	b = appendField(b, 3, s.host())
	for _, a := range s.VIPs {
		b = appendField(b, 4, string(appendField(nil, 2, string(a.AsSlice()))))
	}
	for _, p := range s.Ports {
		b = appendField(b, 5, string(portMessage(p)))
	}
	return b
}

func portMessage(p Port) []byte {
	return appendVarint(appendVarint(nil, 1, uint64(p.Number)), 2, uint64(p.target()))
}

func appendVarint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}
