// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"net/netip"
	"time"
)

// A Listener says what becomes of the connections to one address, or to one
// port of every address.
type Listener struct {
	Name string
	// Addresses holds the main address and the additional ones. An
	// unspecified IP (0.0.0.0 or ::) stands for every address of its port.
	Addresses []netip.AddrPort
	// Outbound is false for listeners of traffic towards the node, which a
	// client-only node does not serve.
	Outbound bool
	// Virtual marks the catch-all listener that hands connections to the
	// others by their original destination (use_original_dst).
	Virtual bool
	// TLSInspector and HTTPInspector tell which listener filters look at the
	// first bytes before a chain is chosen.
	TLSInspector  bool
	HTTPInspector bool
	// SniffTimeout bounds the wait for those bytes; 0 means for ever.
	SniffTimeout time.Duration
	// ContinueOnTimeout picks a chain without the bytes when the time is up;
	// otherwise the connection is closed.
	ContinueOnTimeout bool
	Chains            []*FilterChain
	// Default serves what no chain matches; nil closes the connection.
	Default *FilterChain
	// Ignored names the features of the resource that have no effect here.
	Ignored []string
}

// ChainMatch holds the conditions of one filter chain. Empty fields match
// everything. Envoy's order of specificity is the catalog's work.
type ChainMatch struct {
	DestinationPort      uint16
	Prefixes             []netip.Prefix
	ServerNames          []string // lower case; "*.example.com" is a suffix form
	TransportProtocol    string   // "", "tls" or "raw_buffer"
	ApplicationProtocols []string
	// Unsupported names conditions that cannot be judged here (source
	// ranges). Such a chain never matches, so that it cannot match wrongly.
	Unsupported []string
}

// A FilterChain is what a matched connection goes through. Exactly one of
// TCP, HTTP and Refused is set.
type FilterChain struct {
	Name  string
	Match ChainMatch
	TCP   *TCPProxy
	HTTP  *HTTPManager
	// Refused names the reason for which connections are reset: a security
	// filter that is not known here must fail closed.
	Refused string
}

// TCPProxy relays bytes to one of the weighted clusters.
type TCPProxy struct {
	Clusters    []WeightedCluster
	IdleTimeout time.Duration // 0: none
	MaxDuration time.Duration // 0: none
}

// A WeightedCluster is a cluster name with its share of the traffic.
type WeightedCluster struct {
	Name   string
	Weight uint32
	// RequestHeaders and ResponseHeaders apply to HTTP routes only.
	RequestHeaders  HeaderMutations
	ResponseHeaders HeaderMutations
}

// HTTPManager is the HTTP connection manager of a chain.
type HTTPManager struct {
	// RouteName refers to a RouteConfiguration served by RDS; Routes is the
	// inline one. One of them is set.
	RouteName string
	Routes    *RouteConfiguration

	MaxHeaderBytes    int           // of a request head; 0: the default
	IdleTimeout       time.Duration // of a connection without a stream; 0: none
	StreamIdleTimeout time.Duration // 0: none
	RequestTimeout    time.Duration // to receive a whole request; 0: none
	// Upgrades lists the protocols that may be upgraded to, lower case.
	Upgrades      []string
	AcceptHTTP10  bool
	NormalizePath bool
	MergeSlashes  bool
	GenerateReqID bool
	PreserveReqID bool
	IstioALPN     bool // the istio.alpn filter is in the chain
	AppendXFF     bool // use_remote_address
	// ForwardClientCert passes on an x-forwarded-client-cert of the client;
	// otherwise it is taken out, so that nobody can claim an identity.
	ForwardClientCert bool
	DefaultHostHTTP1  string
}
