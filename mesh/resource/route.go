// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"regexp"
	"time"
)

// A RouteConfiguration maps HTTP requests to clusters by Host, then path.
type RouteConfiguration struct {
	Name string
	// IgnorePort drops the port of the Host header before it is matched.
	IgnorePort   bool
	VirtualHosts []*VirtualHost
	Ignored      []string
}

// A VirtualHost holds the routes of a set of host names.
type VirtualHost struct {
	Name string
	// Domains are lower case: exact, "*.suffix", "prefix.*" or "*". istiod
	// also lists the service's virtual IPs here.
	Domains         []string
	Routes          []*Route
	RequestHeaders  HeaderMutations
	ResponseHeaders HeaderMutations
	// CountAttempts tells the upstream which try it sees, in
	// x-envoy-attempt-count.
	CountAttempts bool
}

// A Route is a condition and what to do with the requests that meet it.
// Exactly one of Action, Redirect and Direct is set.
type Route struct {
	Name     string
	Match    RouteMatch
	Action   *RouteAction
	Redirect *Redirect
	Direct   *DirectResponse

	RequestHeaders  HeaderMutations
	ResponseHeaders HeaderMutations
	// Ignored names the features of this route that have no effect here.
	Ignored []string
}

// RouteMatch is the condition of a route; all parts must hold. Exactly one
// of the path conditions is set ("/" as Prefix matches every path).
type RouteMatch struct {
	Prefix        string
	PathPrefix    string // path_separated_prefix: whole segments
	Path          string
	Regex         *regexp.Regexp // anchored at both ends
	CaseSensitive bool
	Headers       []HeaderMatch
	Query         []HeaderMatch // Name is the parameter's
	GRPC          bool
	// Fraction is the share of requests in millionths, if HasFraction.
	Fraction    uint32
	HasFraction bool
	// Unsupported names conditions that cannot be judged here. Such a route
	// never matches: a wrong match would send traffic to the wrong place.
	Unsupported []string
}

// HeaderMatch is a condition on one header or query parameter. A header
// without a value condition must merely be present.
type HeaderMatch struct {
	Name string // lower case; ":method", ":authority", ":path", ":scheme" too
	// Canonical is Name in the form of net/http, made once for all requests.
	Canonical string
	Present   bool
	Exact     string
	HasExact  bool
	Prefix    string
	Suffix    string
	Contains  string
	Regex     *regexp.Regexp // anchored
	RangeLo   int64          // [lo, hi) when HasRange
	RangeHi   int64
	HasRange  bool
	FoldCase  bool
	Invert    bool
	// AbsentAsEmpty treats a missing header as an empty one.
	AbsentAsEmpty bool
}

// HasValue reports whether the header's value matters, not its presence alone.
func (h *HeaderMatch) HasValue() bool {
	return h.HasExact || h.HasRange || h.Regex != nil || h.Prefix != "" || h.Suffix != "" || h.Contains != ""
}

// RouteAction forwards to a cluster.
type RouteAction struct {
	Clusters []WeightedCluster // at least one
	// Timeout bounds the whole exchange up to the end of the response; 0: none.
	Timeout time.Duration
	// MaxGRPCTimeout bounds and enables the client's grpc-timeout; nil: not read.
	MaxGRPCTimeout *time.Duration
	IdleTimeout    time.Duration // 0: none
	Retry          *RetryPolicy  // nil: never retried

	HostRewrite       string
	AutoHostRewrite   bool
	PrefixRewrite     string
	HasPrefixRewrite  bool
	RegexRewrite      *regexp.Regexp
	RegexSubstitution string
	Upgrades          []string
	// NotFound answers 503 or 404 when the cluster does not exist (Envoy's
	// cluster_not_found_response_code).
	NotFound int
}

// RetryPolicy says which failed tries are repeated, and where.
type RetryPolicy struct {
	Max           uint32 // further tries after the first
	On            RetryOn
	Statuses      []int
	PerTryTimeout time.Duration // 0: none
	BackoffBase   time.Duration // 0: 25 ms
	BackoffMax    time.Duration // 0: ten times the base
	// PreviousHosts avoids endpoints already tried, with at most
	// HostAttempts new selections.
	PreviousHosts bool
	HostAttempts  int
}

// RetryOn is the set of conditions of a RetryPolicy.
type RetryOn uint32

// The conditions, by the names that Envoy gives them.
const (
	Retry5xx RetryOn = 1 << iota
	RetryGatewayError
	RetryReset
	RetryResetBeforeRequest
	RetryConnectFailure
	RetryRefusedStream
	RetryRetriable4xx
	RetryRetriableStatusCodes
	RetryGRPCCancelled
	RetryGRPCDeadlineExceeded
	RetryGRPCInternal
	RetryGRPCResourceExhausted
	RetryGRPCUnavailable
)

// Redirect answers with a Location.
type Redirect struct {
	Status        int
	Scheme        string
	Host          string
	Port          uint16
	Path          string
	PrefixRewrite string
	HasPrefix     bool
	HTTPS         bool
	StripQuery    bool
}

// DirectResponse answers by itself.
type DirectResponse struct {
	Status int
	Body   []byte
}

// HeaderMutations are applied in the order remove, then set and append.
type HeaderMutations struct {
	Remove []string
	Set    []HeaderValue
}

// HeaderValue is one header to write.
type HeaderValue struct {
	Name, Value string
	Action      HeaderAction
}

// HeaderAction says what happens when the header exists already.
type HeaderAction uint8

// The actions of Envoy's HeaderValueOption.
const (
	AppendOrAdd HeaderAction = iota
	AddIfAbsent
	OverwriteOrAdd
	OverwriteIfExists
)
