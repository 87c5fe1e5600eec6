// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// defaultSniffTimeout is Envoy's listener_filters_timeout.
const defaultSniffTimeout = 15 * time.Second

// listenerFields are understood. The second half is about sockets and their
// queues, of which there are none: connections come out of a tunnel.
var listenerFields = fields("name", "address", "additional_addresses", "filter_chains", "default_filter_chain",
	"use_original_dst", "listener_filters", "listener_filters_timeout", "continue_on_listener_filters_timeout",
	"traffic_direction", "filter_chain_matcher", "access_log",
	"stat_prefix", "stats_matcher", "metadata", "per_connection_buffer_limit_bytes", "deprecated_v1", "drain_type",
	"transparent", "freebind", "socket_options", "tcp_fast_open_queue_length", "connection_balance_config",
	"reuse_port", "enable_reuse_port", "tcp_backlog_size", "max_connections_to_accept_per_socket_event",
	"bind_to_port", "enable_mptcp", "ignore_global_conn_limit", "bypass_overload_manager", "tcp_keepalive",
	"internal_listener")

// DecodeListener reads a Listener. Of one that is not for outbound traffic
// only the name and the addresses are read, since no traffic comes to it.
func DecodeListener(a *anypb.Any) (*Listener, error) {
	var pb listenerv3.Listener
	if err := unpack("listener", a, &pb); err != nil {
		return nil, err
	}
	l, err := decodeListener(&pb)
	if err != nil {
		return nil, fmt.Errorf("decode listener %q: %w", pb.GetName(), err)
	}
	return l, nil
}

func decodeListener(pb *listenerv3.Listener) (*Listener, error) {
	if pb.GetName() == "" {
		return nil, errors.New("no name")
	}
	var n notes
	l := &Listener{
		Name:              intern(pb.GetName()),
		Outbound:          pb.GetTrafficDirection() == corev3.TrafficDirection_OUTBOUND,
		Virtual:           pb.GetUseOriginalDst().GetValue(),
		SniffTimeout:      duration(pb.GetListenerFiltersTimeout(), defaultSniffTimeout),
		ContinueOnTimeout: pb.GetContinueOnListenerFiltersTimeout(),
	}
	if err := l.addresses(pb, &n); err != nil {
		return nil, err
	}
	if !l.Outbound {
		return l, nil
	}
	n.rest("listener", pb, listenerFields)
	n.accessLogs(pb.GetAccessLog())
	if err := l.inspectors(pb, &n); err != nil {
		return nil, err
	}
	for i, c := range pb.GetFilterChains() {
		chain, err := decodeChain(c, &n)
		if err != nil {
			return nil, fmt.Errorf("chain %d %q: %w", i, c.GetName(), err)
		}
		l.Chains = append(l.Chains, chain)
	}
	if c := pb.GetDefaultFilterChain(); c != nil {
		chain, err := decodeChain(c, &n)
		if err != nil {
			return nil, fmt.Errorf("default chain: %w", err)
		}
		chain.Match = ChainMatch{} // it has none, whatever is written there
		l.Default = chain
	}
	if pb.GetFilterChainMatcher() != nil {
		// The tree that chooses cannot be read, so no chain is right.
		l.Chains, l.Default = nil, &FilterChain{Refused: "filter_chain_matcher"}
		n.add("listener.filter_chain_matcher")
	}
	l.Ignored = n.done()
	return l, nil
}

func (l *Listener) addresses(pb *listenerv3.Listener, n *notes) error {
	all := []*corev3.Address{pb.GetAddress()}
	for _, a := range pb.GetAdditionalAddresses() {
		all = append(all, a.GetAddress())
	}
	for _, a := range all {
		sa := a.GetSocketAddress()
		if sa == nil {
			if a.GetAddress() != nil {
				n.add("listener.address: not of a socket")
			}
			continue // an internal listener has none
		}
		addr, host, _, err := hostPort(sa)
		if err != nil {
			return err
		}
		if host != "" {
			return fmt.Errorf("address %q is no IP", host)
		}
		if sa.GetProtocol() == corev3.SocketAddress_UDP {
			n.add("listener.address: UDP")
			continue
		}
		l.Addresses = append(l.Addresses, addr)
		if sa.GetIpv4Compat() && addr.Addr() == netip.IPv6Unspecified() {
			l.Addresses = append(l.Addresses, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()))
		}
	}
	return nil
}

// inspectors reads which listener filters look at the first bytes.
func (l *Listener) inspectors(pb *listenerv3.Listener, n *notes) error {
	for _, f := range pb.GetListenerFilters() {
		config := f.GetTypedConfig()
		switch {
		case config.MessageIs((*tlsinspectorv3.TlsInspector)(nil)):
			l.TLSInspector = true
		case config.MessageIs((*httpinspectorv3.HttpInspector)(nil)):
			l.HTTPInspector = true
		case config.MessageIs((*originaldstv3.OriginalDst)(nil)):
			// The destination is known from the packets.
		default:
			n.add("listener filter ", f.GetName())
		}
		if f.GetFilterDisabled() != nil {
			n.add("listener filter ", f.GetName(), " filter_disabled")
		}
	}
	return nil
}

var chainFields = fields("filter_chain_match", "filters", "name", "metadata", "transport_socket",
	"transport_socket_connect_timeout")

func decodeChain(pb *listenerv3.FilterChain, n *notes) (*FilterChain, error) {
	c := &FilterChain{Name: intern(pb.GetName())}
	n.rest("chain", pb, chainFields)
	if err := c.Match.decode(pb.GetFilterChainMatch()); err != nil {
		return nil, err
	}
	if err := c.filters(pb.GetFilters(), n); err != nil {
		return nil, err
	}
	if pb.GetTransportSocket() != nil {
		// A sidecar as an egress gateway would end the client's TLS here.
		if t, err := decodeTransport(pb.GetTransportSocket()); err != nil || t.Kind != Plain {
			c.refuse("chain.transport_socket", n)
		}
	}
	return c, nil
}

// refuse makes a chain reset what comes to it.
func (c *FilterChain) refuse(reason string, n *notes) {
	c.TCP, c.HTTP, c.Refused = nil, nil, intern(reason)
	n.add("refused: ", reason)
}

var chainMatchFields = fields("destination_port", "prefix_ranges", "server_names", "transport_protocol",
	"application_protocols")

func (m *ChainMatch) decode(pb *listenerv3.FilterChainMatch) error {
	var n notes
	n.rest("chain match", pb, chainMatchFields)
	m.Unsupported = n.done()
	port := pb.GetDestinationPort().GetValue()
	if port > math.MaxUint16 {
		return fmt.Errorf("destination port %d", port)
	}
	m.DestinationPort = uint16(port)
	m.TransportProtocol = intern(pb.GetTransportProtocol())
	m.ApplicationProtocols = internAll(pb.GetApplicationProtocols())
	for _, r := range pb.GetPrefixRanges() {
		p, err := decodePrefix(r)
		if err != nil {
			return err
		}
		m.Prefixes = append(m.Prefixes, p)
	}
	for _, s := range pb.GetServerNames() {
		if i := strings.LastIndexByte(s, '*'); i > 0 || s == "*" || i == 0 && !strings.HasPrefix(s, "*.") {
			return fmt.Errorf("server name %q: only a whole first label may be a star", s)
		}
		m.ServerNames = append(m.ServerNames, intern(strings.ToLower(s)))
	}
	return nil
}

func decodePrefix(r *corev3.CidrRange) (netip.Prefix, error) {
	ip, err := netip.ParseAddr(r.GetAddressPrefix())
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix range %q: %w", r.GetAddressPrefix(), err)
	}
	p, err := ip.Unmap().Prefix(int(min(r.GetPrefixLen().GetValue(), 255)))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix range %q: %w", r.GetAddressPrefix(), err)
	}
	return p, nil
}

// boolOr reads a wrapped truth value with a default.
func boolOr(b *wrapperspb.BoolValue, def bool) bool {
	if b == nil {
		return def
	}
	return b.GetValue()
}
