// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	accesslogpb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filepb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	inspectorpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	filterTCP = "envoy.filters.network.tcp_proxy"

	outboundPort = 15001 // of virtualOutbound
	inboundPort  = 15006 // of virtualInbound

	// chainTimeout is Istio's bound on the handshake of a downstream.
	chainTimeout = 15 * time.Second

	// logFormat is Istio's default text format.
	logFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
		`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
		`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
		`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
		"%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)

var (
	any4 = netip.IPv4Unspecified()
	any6 = netip.IPv6Unspecified()

	// plainHTTP are the protocols that the HTTP inspector finds.
	plainHTTP = []string{"http/1.1", "h2c"}
)

// listeners makes the listeners of the world: one for each port that HTTP
// services share, one for each TCP address, and the two virtual ones.
func (w *world) listeners(namespace string) []*listenerpb.Listener {
	out := []*listenerpb.Listener{w.virtualOutbound(), virtualInbound()}
	if w.ambient() {
		out = append(out, tunnelListener())
	}
	shared := map[uint16]bool{}
	for i := range w.services {
		s := &w.services[i]
		for _, p := range s.Ports {
			switch p.Protocol {
			case HTTP, GRPC:
				if !shared[p.Number] {
					shared[p.Number] = true
					out = append(out, w.httpListener(p.Number, namespace))
				}
			case TCP, Auto:
				out = append(out, w.ownListeners(s, p, namespace)...)
			}
		}
	}
	return out
}

// httpListener routes by Host for every service of a port; what is not HTTP
// passes.
func (w *world) httpListener(port uint16, namespace string) *listenerpb.Listener {
	l := outbound(listenerName(any4, port), w.anyAddress(), port)
	l.ListenerFilters = httpInspector()
	l.FilterChains = []*listenerpb.FilterChain{w.httpChain(l.GetName(), strconv.Itoa(int(port)), namespace)}
	l.DefaultFilterChain = &listenerpb.FilterChain{
		FilterChainMatch: &listenerpb.FilterChainMatch{},
		Name:             "PassthroughFilterChain",
		Filters:          []*listenerpb.Filter{tcpProxy(w.unknown())},
	}
	return l
}

// ownListeners are those of one service port: on its addresses, or one for
// each pod of a headless service.
func (w *world) ownListeners(s *placed, p Port, namespace string) []*listenerpb.Listener {
	if !s.Headless {
		return []*listenerpb.Listener{w.ownListener(s, p, s.VIPs, namespace)}
	}
	var out []*listenerpb.Listener
	for i := range s.Endpoints {
		if a, ok := s.where[i][p.Number]; ok {
			out = append(out, w.ownListener(s, p, []netip.Addr{a.Addr()}, namespace))
		}
	}
	return out
}

func (w *world) ownListener(s *placed, p Port, addrs []netip.Addr, namespace string) *listenerpb.Listener {
	l := outbound(listenerName(addrs[0], p.Number), addrs, p.Number)
	tcp := &listenerpb.FilterChain{
		Filters:                       []*listenerpb.Filter{tcpProxy(clusterName(s, p))},
		TransportSocketConnectTimeout: durationpb.New(chainTimeout),
	}
	if p.Protocol == TCP {
		l.FilterChains = []*listenerpb.FilterChain{tcp}
		return l
	}
	l.ListenerFilters = httpInspector()
	l.FilterChains = []*listenerpb.FilterChain{w.httpChain(l.GetName(), autoRouteName(s, p), namespace)}
	l.DefaultFilterChain = tcp
	return l
}

// autoRouteName names the routes of a sniffed port, which it shares with no
// other service.
func autoRouteName(s *placed, p Port) string {
	return s.host() + ":" + strconv.Itoa(int(p.Number))
}

// anyAddress is where listeners for every destination stand: IPv6 beside IPv4
// once the mesh has both.
func (w *world) anyAddress() []netip.Addr {
	if w.dual {
		return []netip.Addr{any4, any6}
	}
	return []netip.Addr{any4}
}

// unknown is the cluster for destinations that the mesh does not know.
func (w *world) unknown() string {
	if w.registryOnly {
		return blackHoleCluster
	}
	return passthroughCluster
}

// outbound makes the frame of a listener that virtualOutbound hands to.
func outbound(name string, addrs []netip.Addr, port uint16) *listenerpb.Listener {
	return &listenerpb.Listener{
		Name:                             name,
		Address:                          address(addrs[0], port),
		AdditionalAddresses:              additional(addrs[1:], port),
		ListenerFiltersTimeout:           durationpb.New(0),
		ContinueOnListenerFiltersTimeout: true,
		TrafficDirection:                 corepb.TrafficDirection_OUTBOUND,
		BindToPort:                       wrapperspb.Bool(false),
	}
}

func additional(addrs []netip.Addr, port uint16) []*listenerpb.AdditionalAddress {
	var out []*listenerpb.AdditionalAddress
	for _, a := range addrs {
		out = append(out, &listenerpb.AdditionalAddress{Address: address(a, port)})
	}
	return out
}

// virtualOutbound takes every captured connection and serves those that no
// other listener wants.
func (w *world) virtualOutbound() *listenerpb.Listener {
	addrs := w.anyAddress()
	return &listenerpb.Listener{
		Name:                "virtualOutbound",
		Address:             address(addrs[0], outboundPort),
		AdditionalAddresses: additional(addrs[1:], outboundPort),
		FilterChains: []*listenerpb.FilterChain{
			{
				Name:             "virtualOutbound-blackhole",
				FilterChainMatch: &listenerpb.FilterChainMatch{DestinationPort: wrapperspb.UInt32(outboundPort)},
				Filters:          []*listenerpb.Filter{blackHole()},
			},
			{Name: "virtualOutbound-catchall-tcp", Filters: []*listenerpb.Filter{tcpProxy(w.unknown())}},
		},
		UseOriginalDst:                       wrapperspb.Bool(true),
		TrafficDirection:                     corepb.TrafficDirection_OUTBOUND,
		AccessLog:                            []*accesslogpb.AccessLog{accessLog("NR")},
		MaxConnectionsToAcceptPerSocketEvent: wrapperspb.UInt32(1),
	}
}

// virtualInbound is what a node without services gets for traffic towards
// itself. A client has no use for it and must not trip over it.
func virtualInbound() *listenerpb.Listener {
	exchange := &listenerpb.Filter{
		Name:       "istio.metadata_exchange",
		ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: tcpExchangeConfig()},
	}
	return &listenerpb.Listener{
		Name:    "virtualInbound",
		Address: address(any4, inboundPort),
		FilterChains: []*listenerpb.FilterChain{{
			Name:             "virtualInbound-blackhole",
			FilterChainMatch: &listenerpb.FilterChainMatch{DestinationPort: wrapperspb.UInt32(inboundPort)},
			Filters:          []*listenerpb.Filter{exchange, blackHole()},
		}, {
			Name: "virtualInbound",
			FilterChainMatch: &listenerpb.FilterChainMatch{
				TransportProtocol: "raw_buffer",
				PrefixRanges:      []*corepb.CidrRange{{AddressPrefix: any4.String(), PrefixLen: wrapperspb.UInt32(0)}},
			},
			Filters: []*listenerpb.Filter{exchange, tcpProxy(inboundPassthrough)},
		}},
		UseOriginalDst:   wrapperspb.Bool(true),
		TrafficDirection: corepb.TrafficDirection_INBOUND,
		AccessLog:        []*accesslogpb.AccessLog{accessLog("NR")},
	}
}

// tcpProxy relays to a cluster.
func tcpProxy(cluster string) *listenerpb.Filter {
	return &listenerpb.Filter{Name: filterTCP, ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: packed(&tcppb.TcpProxy{
		StatPrefix:       cluster,
		ClusterSpecifier: &tcppb.TcpProxy_Cluster{Cluster: cluster},
		AccessLog:        []*accesslogpb.AccessLog{accessLog()},
	})}}
}

// blackHole closes what would come back to the proxy's own port, unlogged.
func blackHole() *listenerpb.Filter {
	return &listenerpb.Filter{Name: filterTCP, ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: packed(&tcppb.TcpProxy{
		StatPrefix:       blackHoleCluster,
		ClusterSpecifier: &tcppb.TcpProxy_Cluster{Cluster: blackHoleCluster},
	})}}
}

func httpInspector() []*listenerpb.ListenerFilter {
	return []*listenerpb.ListenerFilter{{
		Name:       "envoy.filters.listener.http_inspector",
		ConfigType: &listenerpb.ListenerFilter_TypedConfig{TypedConfig: packed(&inspectorpb.HttpInspector{})},
	}}
}

// httpChain is the chain of connections in which the inspector found HTTP.
func (w *world) httpChain(listener, routes, namespace string) *listenerpb.FilterChain {
	return &listenerpb.FilterChain{
		FilterChainMatch:              &listenerpb.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: slices.Clone(plainHTTP)},
		Filters:                       []*listenerpb.Filter{w.httpManager(listener, routes, namespace)},
		TransportSocketConnectTimeout: durationpb.New(chainTimeout),
	}
}

// accessLog is the mesh's log on standard output, of connections with one of
// the flags, or of all.
func accessLog(flags ...string) *accesslogpb.AccessLog {
	l := &accesslogpb.AccessLog{
		Name: "envoy.access_loggers.file",
		ConfigType: &accesslogpb.AccessLog_TypedConfig{TypedConfig: packed(&filepb.FileAccessLog{
			Path: "/dev/stdout",
			AccessLogFormat: &filepb.FileAccessLog_LogFormat{LogFormat: &corepb.SubstitutionFormatString{
				Format: &corepb.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corepb.DataSource{
					Specifier: &corepb.DataSource_InlineString{InlineString: logFormat},
				}},
			}},
		})},
	}
	if len(flags) > 0 {
		l.Filter = &accesslogpb.AccessLogFilter{FilterSpecifier: &accesslogpb.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogpb.ResponseFlagFilter{Flags: flags},
		}}
	}
	return l
}
