// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"math"
	"net/netip"
	"time"

	udpapb "github.com/cncf/xds/go/udpa/type/v1"
	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalpb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawpb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatapb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The names of clusters and extensions as istiod writes them.
const (
	passthroughCluster = "PassthroughCluster"
	blackHoleCluster   = "BlackHoleCluster"
	inboundPassthrough = "InboundPassthroughCluster"

	transportTLS      = "envoy.transport_sockets.tls"
	transportRaw      = "envoy.transport_sockets.raw_buffer"
	transportInternal = "envoy.transport_sockets.internal_upstream"
	httpOptions       = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	tcpExchange       = "istio-peer-exchange"
)

// connectTimeout is the mesh's default.
const connectTimeout = 10 * time.Second

// How long istiod lets HTTP connections idle that pass through and that carry
// tunnels, and when it looks for clusters of tunnels that are not used.
const (
	passthroughIdle = 5 * time.Minute
	tunnelIdle      = time.Hour
	tunnelCleanup   = time.Minute
)

// cluster makes the outbound cluster of a service port.
func (w *world) cluster(s *placed, p Port) *clusterpb.Cluster {
	name := clusterName(s, p)
	c := &clusterpb.Cluster{
		Name:            name,
		AltStatName:     name + ";",
		ConnectTimeout:  durationpb.New(connectTimeout),
		CircuitBreakers: noBreakers(),
		CommonLbConfig:  &clusterpb.Cluster_CommonLbConfig{HealthyPanicThreshold: &typepb.Percent{}},
		Metadata: &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"istio": object(map[string]any{"services": []any{map[string]any{
				"host": s.host(), "name": s.Name, "namespace": s.Namespace,
			}}}),
		}},
		Filters:                []*clusterpb.Filter{clusterExchange()},
		TransportSocketMatches: w.transports(s, p),
	}
	if s.Headless {
		c.ClusterDiscoveryType = &clusterpb.Cluster_Type{Type: clusterpb.Cluster_ORIGINAL_DST}
		c.LbPolicy = clusterpb.Cluster_CLUSTER_PROVIDED
		// No endpoint metadata tells how a headless pod is reached, so that
		// the matches end at clear text. A mesh that means mTLS says so for
		// the whole cluster, by a DestinationRule with ISTIO_MUTUAL.
		if s.TLS == Strict {
			c.TransportSocketMatches = nil
			c.TransportSocket = w.mtls(s, p)
		}
	} else {
		c.ClusterDiscoveryType = &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS}
		c.LbPolicy = clusterpb.Cluster_LEAST_REQUEST
		c.EdsClusterConfig = &clusterpb.Cluster_EdsClusterConfig{EdsConfig: overADS(), ServiceName: name}
	}
	if p.Protocol == GRPC {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: packed(&httppb.HttpProtocolOptions{
			UpstreamProtocolOptions: explicitHTTP2(&corepb.Http2ProtocolOptions{}),
		})}
	}
	return c
}

// transports are the matches that each endpoint's metadata chooses from.
func (w *world) transports(s *placed, p Port) []*clusterpb.Cluster_TransportSocketMatch {
	return []*clusterpb.Cluster_TransportSocketMatch{
		{Name: "hbone", Match: object(map[string]any{"tunnel": "http"}), TransportSocket: tunnel()},
		{Name: "tlsMode-istio", Match: object(map[string]any{"tlsMode": "istio"}), TransportSocket: w.mtls(s, p)},
		{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: raw()},
	}
}

// mtls is the socket that presents the client's certificate and checks the
// service's identities.
func (w *world) mtls(s *placed, p Port) *corepb.TransportSocket {
	alpn := []string{tcpExchange, "istio"}
	if p.Protocol == GRPC {
		alpn = append(alpn, "h2")
	}
	check := &tlspb.CertificateValidationContext{}
	for _, san := range w.sans(s) {
		m := &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Exact{Exact: san}}
		//lint:ignore SA1019 istiod still sends the old field
		check.MatchSubjectAltNames = append(check.MatchSubjectAltNames, m)
	}
	return upstreamTLS(transportTLS, &tlspb.UpstreamTlsContext{
		Sni:              sni(s, p),
		CommonTlsContext: commonTLS(tlspb.TlsParameters_TLSv1_2, alpn, check),
	})
}

func upstreamTLS(name string, c *tlspb.UpstreamTlsContext) *corepb.TransportSocket {
	return &corepb.TransportSocket{Name: name, ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: packed(c)}}
}

// commonTLS uses the certificate and the roots that the sidecar's agent holds.
func commonTLS(lowest tlspb.TlsParameters_TlsProtocol, alpn []string, check *tlspb.CertificateValidationContext) *tlspb.CommonTlsContext {
	return &tlspb.CommonTlsContext{
		AlpnProtocols: alpn,
		TlsParams: &tlspb.TlsParameters{
			TlsMinimumProtocolVersion: lowest,
			TlsMaximumProtocolVersion: tlspb.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlspb.SdsSecretConfig{overSDS("default")},
		ValidationContextType: &tlspb.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlspb.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         check,
				ValidationContextSdsSecretConfig: overSDS("ROOTCA"),
			},
		},
	}
}

// explicitHTTP2 is a cluster that is spoken to in HTTP/2 whatever the client
// speaks.
func explicitHTTP2(o *corepb.Http2ProtocolOptions) *httppb.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httppb.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: o},
		},
	}
}

// builtinClusters are those that every sidecar has.
func (w *world) builtinClusters() []*clusterpb.Cluster {
	out := []*clusterpb.Cluster{
		{
			Name:                 blackHoleCluster,
			AltStatName:          blackHoleCluster + ";",
			ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_STATIC},
			ConnectTimeout:       durationpb.New(connectTimeout),
		},
		passthrough(passthroughCluster, clusterExchange()),
		withSource(passthrough(inboundPassthrough, nil)),
	}
	if w.ambient() {
		out = append(out, w.tunnelCluster())
	}
	return out
}

// passthrough is a cluster that goes where the client wanted to go.
func passthrough(name string, filter *clusterpb.Filter) *clusterpb.Cluster {
	c := &clusterpb.Cluster{
		Name:                 name,
		AltStatName:          passthroughCluster + ";",
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterpb.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       durationpb.New(connectTimeout),
		CircuitBreakers:      noBreakers(),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: packed(&httppb.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corepb.HttpProtocolOptions{IdleTimeout: durationpb.New(passthroughIdle)},
			UpstreamProtocolOptions: &httppb.HttpProtocolOptions_UseDownstreamProtocolConfig{
				UseDownstreamProtocolConfig: &httppb.HttpProtocolOptions_UseDownstreamHttpConfig{
					HttpProtocolOptions:  &corepb.Http1ProtocolOptions{},
					Http2ProtocolOptions: &corepb.Http2ProtocolOptions{},
				},
			},
		})},
	}
	if filter != nil {
		c.Filters = []*clusterpb.Filter{filter}
	}
	return c
}

// inboundSource is the address that a sidecar talks to its application from.
var inboundSource = netip.AddrFrom4([4]byte{127, 0, 0, 6})

func withSource(c *clusterpb.Cluster) *clusterpb.Cluster {
	c.UpstreamBindConfig = &corepb.BindConfig{SourceAddress: &corepb.SocketAddress{
		Address:       inboundSource.String(),
		PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: 0},
	}}
	return c
}

// endpoints makes the assignment of a cluster.
func (w *world) endpoints(s *placed, p Port) *endpointpb.ClusterLoadAssignment {
	a := &endpointpb.ClusterLoadAssignment{ClusterName: clusterName(s, p)}
	if w.gateway.IsValid() && s.meshed() {
		return w.behindGateway(a, s)
	}
	groups := map[string]*endpointpb.LocalityLbEndpoints{}
	for i, e := range s.Endpoints {
		addr, ok := s.where[i][p.Number]
		if !ok {
			continue
		}
		key := e.Region + "/" + e.Zone + "/" + e.SubZone + "/" + string(rune(e.Priority))
		g := groups[key]
		if g == nil {
			g = &endpointpb.LocalityLbEndpoints{
				Locality:            &corepb.Locality{Region: e.Region, Zone: e.Zone, SubZone: e.SubZone},
				Priority:            e.Priority,
				LoadBalancingWeight: wrapperspb.UInt32(0),
			}
			groups[key] = g
			a.Endpoints = append(a.Endpoints, g)
		}
		g.LbEndpoints = append(g.LbEndpoints, w.endpoint(s, e, addr))
		g.LoadBalancingWeight.Value += e.Weight
	}
	if len(a.Endpoints) == 0 {
		// istiod names the locality even when nothing is in it.
		a.Endpoints = []*endpointpb.LocalityLbEndpoints{{Locality: &corepb.Locality{}}}
	}
	return a
}

func (w *world) endpoint(s *placed, e Endpoint, addr netip.AddrPort) *endpointpb.LbEndpoint {
	ep := &endpointpb.LbEndpoint{
		HostIdentifier:      &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{Address: address(addr.Addr(), addr.Port())}},
		LoadBalancingWeight: wrapperspb.UInt32(e.Weight),
		Metadata: &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"istio": object(map[string]any{"workload": s.Name + ";" + s.Namespace + ";" + s.Name + ";latest;" + w.clusterID}),
		}},
	}
	if e.Unhealthy {
		ep.HealthStatus = corepb.HealthStatus_UNHEALTHY
	}
	md := ep.GetMetadata().GetFilterMetadata()
	switch s.TLS {
	case Strict, Permissive:
		md["envoy.transport_socket_match"] = object(map[string]any{"tlsMode": "istio"})
	case HBONE:
		md["envoy.transport_socket_match"] = object(map[string]any{"tunnel": "http"})
		md[originalDst] = object(map[string]any{"local": addr.String()})
		ep.HostIdentifier = &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{Address: &corepb.Address{
			Address: &corepb.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corepb.EnvoyInternalAddress{
				AddressNameSpecifier: &corepb.EnvoyInternalAddress_ServerListenerName{ServerListenerName: connectOriginate},
				EndpointId:           addr.String(),
			}},
		}}}
	case Disabled:
	}
	return ep
}

// behindGateway is one endpoint for all: a client on another network sees no
// pods, and the gateway's answer to who they are is left blank.
func (w *world) behindGateway(a *endpointpb.ClusterLoadAssignment, s *placed) *endpointpb.ClusterLoadAssignment {
	g := &endpointpb.LocalityLbEndpoints{Locality: &corepb.Locality{}}
	a.Endpoints = []*endpointpb.LocalityLbEndpoints{g}
	if n := uint32(len(s.Endpoints)); n > 0 {
		g.LoadBalancingWeight = wrapperspb.UInt32(n)
		g.LbEndpoints = []*endpointpb.LbEndpoint{{
			HostIdentifier: &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{
				Address: address(w.gateway.Addr(), w.gateway.Port()),
			}},
			LoadBalancingWeight: wrapperspb.UInt32(n),
			Metadata: &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"envoy.transport_socket_match": object(map[string]any{"tlsMode": "istio"}),
				"istio":                        object(map[string]any{"workload": ";;;;" + w.clusterID}),
			}},
		}}
	}
	return a
}

// noBreakers are thresholds that never trip, which istiod sets on each cluster.
func noBreakers() *clusterpb.CircuitBreakers {
	unlimited := wrapperspb.UInt32(math.MaxUint32)
	return &clusterpb.CircuitBreakers{Thresholds: []*clusterpb.CircuitBreakers_Thresholds{{
		MaxConnections: unlimited, MaxPendingRequests: unlimited, MaxRequests: unlimited, MaxRetries: unlimited,
	}}}
}

// clusterExchange is the peer-metadata filter, which clients that do not offer
// istio-peer-exchange have no use for.
func clusterExchange() *clusterpb.Filter {
	return &clusterpb.Filter{Name: "istio.metadata_exchange", TypedConfig: tcpExchangeConfig()}
}

func tcpExchangeConfig() *anypb.Any {
	return packed(&udpapb.TypedStruct{
		TypeUrl: "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
		Value:   object(map[string]any{"enable_discovery": true, "protocol": tcpExchange}),
	})
}

func raw() *corepb.TransportSocket {
	return &corepb.TransportSocket{
		Name:       transportRaw,
		ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: packed(&rawpb.RawBuffer{})},
	}
}

// tunnel is the socket towards the HBONE listener.
func tunnel() *corepb.TransportSocket {
	host := &metadatapb.MetadataKind{Kind: &metadatapb.MetadataKind_Host_{Host: &metadatapb.MetadataKind_Host{}}}
	cluster := &metadatapb.MetadataKind{Kind: &metadatapb.MetadataKind_Cluster_{Cluster: &metadatapb.MetadataKind_Cluster{}}}
	return &corepb.TransportSocket{
		Name: transportInternal,
		ConfigType: &corepb.TransportSocket_TypedConfig{TypedConfig: packed(&internalpb.InternalUpstreamTransport{
			PassthroughMetadata: []*internalpb.InternalUpstreamTransport_MetadataValueSource{
				{Kind: host, Name: originalDst},
				{Kind: cluster, Name: "istio"},
				{Kind: host, Name: "istio"},
			},
			TransportSocket: raw(),
		})},
	}
}

// overADS says that a resource comes on the same stream.
func overADS() *corepb.ConfigSource {
	return &corepb.ConfigSource{
		ConfigSourceSpecifier: &corepb.ConfigSource_Ads{Ads: &corepb.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0),
		ResourceApiVersion:    corepb.ApiVersion_V3,
	}
}

// overSDS names a secret that the sidecar's agent holds.
func overSDS(name string) *tlspb.SdsSecretConfig {
	return &tlspb.SdsSecretConfig{Name: name, SdsConfig: &corepb.ConfigSource{
		ConfigSourceSpecifier: &corepb.ConfigSource_ApiConfigSource{ApiConfigSource: &corepb.ApiConfigSource{
			ApiType:             corepb.ApiConfigSource_GRPC,
			TransportApiVersion: corepb.ApiVersion_V3,
			GrpcServices: []*corepb.GrpcService{{TargetSpecifier: &corepb.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corepb.GrpcService_EnvoyGrpc{ClusterName: "sds-grpc"},
			}}},
			SetNodeOnFirstMessageOnly: true,
		}},
		InitialFetchTimeout: durationpb.New(0),
		ResourceApiVersion:  corepb.ApiVersion_V3,
	}}
}

func address(a netip.Addr, port uint16) *corepb.Address {
	return &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
		Address:       a.String(),
		PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func object(m map[string]any) *structpb.Struct {
	s, err := structpb.NewStruct(m)
	if err != nil {
		panic(err) // maps of our own making always convert
	}
	return s
}
