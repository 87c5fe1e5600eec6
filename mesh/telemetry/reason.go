// SPDX-License-Identifier: Apache-2.0

package telemetry

// A Reason says why a flow or a request ended otherwise than well. The list is
// closed: each value is a word in the access record, a value of the label
// reason and a row of the README.
type Reason string

// The reasons. OK prints as "-".
const (
	OK                   Reason = ""
	NotReady             Reason = "not_ready"
	NoRoute              Reason = "no_route"
	NoChain              Reason = "no_chain"
	NoCluster            Reason = "no_cluster"
	NoEndpoint           Reason = "no_endpoint"
	Connect              Reason = "connect"
	Timeout              Reason = "timeout"
	TLS                  Reason = "tls"
	TLSIdentity          Reason = "tls_identity"
	NoIdentity           Reason = "no_identity"
	TransportUnsupported Reason = "transport_unsupported"
	Unrouted             Reason = "unrouted"
	Blackhole            Reason = "blackhole"
	RefusedFilter        Reason = "refused_filter"
	RefusedUDP           Reason = "refused_udp"
	BadRequest           Reason = "bad_request"
	UpstreamProtocol     Reason = "upstream_protocol"
	UpstreamReset        Reason = "upstream_reset"
	ClientGone           Reason = "client_gone"
	Sniff                Reason = "sniff"
	Idle                 Reason = "idle"
	MaxDuration          Reason = "max_duration"
	Overload             Reason = "overload"
	Drained              Reason = "drained"
)

// A ReasonInfo explains one Reason.
type ReasonInfo struct {
	Reason Reason
	// Flag is the Envoy response flag that stands for it unless the record
	// carries its own.
	Flag string
	// Text is what a user reads: what happened, and what to look at.
	Text string
}

// reasons is the one list. Where Envoy has no flag of that meaning, "-".
var reasons = []ReasonInfo{
	{NotReady, "-", "no configuration from the control plane yet"},
	{NoRoute, "NR", "no listener, virtual host or route takes this destination"},
	{NoChain, "NR", "the listener has no filter chain for these first bytes"},
	{NoCluster, "NC", "the route names a cluster that the control plane did not send"},
	{NoEndpoint, "UH", "the service has no endpoint that may be used"},
	{Connect, "UF", "the endpoint refused the connection or is unreachable"},
	{Timeout, "UT", "the endpoint did not connect or answer in time"},
	{TLS, "UF", "the TLS handshake with the endpoint failed"},
	{TLSIdentity, "UF", "the endpoint proved another identity than the mesh expects"},
	{NoIdentity, "UF", "no valid certificate of our own: see status"},
	{TransportUnsupported, "UF", "the endpoint asks for a transport that is not built in, such as HBONE"},
	{Unrouted, "NR", "the address belongs to the mesh, but no listener takes this port; never sent in clear"},
	{Blackhole, "UH", "the outbound policy of the mesh (REGISTRY_ONLY) forbids this destination"},
	{RefusedFilter, "NFCF", "the filter chain holds a security filter that is not supported"},
	{RefusedUDP, "-", "UDP to an address of the mesh, which carries TCP only"},
	{BadRequest, "DPE", "the client sent something that is not valid HTTP"},
	{UpstreamProtocol, "UPE", "the endpoint sent something that is not valid HTTP"},
	{UpstreamReset, "UC", "the endpoint reset the connection or cut it off"},
	{ClientGone, "DC", "the client reset the connection or gave up"},
	{Sniff, "-", "the client's first bytes did not come in time or were malformed"},
	{Idle, "SI", "the idle time-out that the mesh sets for this route passed"},
	{MaxDuration, "DT", "the longest duration that the mesh allows passed"},
	{Overload, "UO", "a limit was reached: a circuit breaker of the mesh, or one of our own"},
	{Drained, "-", "cut off because nasp-tun was ending"},
}

// Reasons returns what can be the reason of a failure, with its explanation.
// The slice is a copy.
func Reasons() []ReasonInfo { return append([]ReasonInfo(nil), reasons...) }

// String returns the word of a record and of a label; "-" for OK.
func (r Reason) String() string {
	if r == OK {
		return "-"
	}
	return string(r)
}

// Flag returns the Envoy response flag that stands for the reason.
func (r Reason) Flag() string {
	for i := range reasons {
		if reasons[i].Reason == r {
			return reasons[i].Flag
		}
	}
	return "-"
}

// Known returns the reason whose word is given, or else if there is none. It
// takes the reasons of packages that do not import this one.
func Known(word string, otherwise Reason) Reason {
	for i := range reasons {
		if string(reasons[i].Reason) == word {
			return reasons[i].Reason
		}
	}
	return otherwise
}
