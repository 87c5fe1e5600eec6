// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 control planes still send the fields that Envoy has deprecated

package resource

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// What Envoy does where a route says nothing.
const (
	defaultRouteTimeout = 15 * time.Second
	defaultRetries      = 1
)

var (
	actionFields = fields("cluster", "weighted_clusters", "cluster_header", "cluster_specifier_plugin",
		"inline_cluster_specifier_plugin", "cluster_not_found_response_code", "prefix_rewrite", "regex_rewrite",
		"host_rewrite_literal", "auto_host_rewrite", "timeout", "idle_timeout", "retry_policy", "upgrade_configs",
		"max_grpc_timeout", "max_stream_duration", "flush_timeout", "early_data_policy")
	weightFields = fields("name", "weight", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "typed_per_filter_config")
	weightsFields = fields("clusters", "total_weight", "runtime_key_prefix")
	streamFields  = fields("grpc_timeout_header_max")
)

// decodeAction reads what forwards a request; nil where the cluster is not
// given by name.
func decodeAction(pb *routev3.RouteAction, fallback *routev3.RetryPolicy, n *notes) (*RouteAction, error) {
	n.rest("route", pb, actionFields)
	a := &RouteAction{
		Timeout:       duration(pb.GetTimeout(), defaultRouteTimeout),
		IdleTimeout:   duration(pb.GetIdleTimeout(), 0),
		PrefixRewrite: pb.GetPrefixRewrite(),
		NotFound:      http.StatusServiceUnavailable,
	}
	a.HasPrefixRewrite = a.PrefixRewrite != ""
	switch pb.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_NOT_FOUND:
		a.NotFound = http.StatusNotFound
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		a.NotFound = http.StatusInternalServerError
	}
	if err := a.clusters(pb, n); err != nil || a.Clusters == nil {
		return nil, err
	}
	switch h := pb.GetHostRewriteSpecifier().(type) {
	case *routev3.RouteAction_HostRewriteLiteral:
		a.HostRewrite = h.HostRewriteLiteral
	case *routev3.RouteAction_AutoHostRewrite:
		a.AutoHostRewrite = h.AutoHostRewrite.GetValue()
	}
	if err := a.rewrite(pb.GetRegexRewrite()); err != nil {
		return nil, err
	}
	a.grpcTimeout(pb, n)
	for _, u := range pb.GetUpgradeConfigs() {
		if boolOr(u.GetEnabled(), true) {
			a.Upgrades = append(a.Upgrades, intern(strings.ToLower(u.GetUpgradeType())))
		}
	}
	policy := pb.GetRetryPolicy()
	if policy == nil {
		policy = fallback
	}
	a.Retry = decodeRetry(policy, n)
	return a, nil
}

func (a *RouteAction) clusters(pb *routev3.RouteAction, n *notes) error {
	switch spec := pb.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		a.Clusters = []WeightedCluster{{Name: intern(spec.Cluster), Weight: 1}}
	case *routev3.RouteAction_WeightedClusters:
		n.rest("route.weighted_clusters", spec.WeightedClusters, weightsFields)
		for _, w := range spec.WeightedClusters.GetClusters() {
			if w.GetName() == "" && w.GetClusterHeader() != "" {
				n.add("route.weighted_clusters.cluster_header")
				a.Clusters = nil
				return nil
			}
			n.rest("route.weighted_clusters", w, weightFields)
			n.perFilter(w.GetTypedPerFilterConfig())
			wc := WeightedCluster{Name: intern(w.GetName()), Weight: w.GetWeight().GetValue()}
			wc.RequestHeaders.extend(w.GetRequestHeadersToAdd(), w.GetRequestHeadersToRemove(), n)
			wc.ResponseHeaders.extend(w.GetResponseHeadersToAdd(), w.GetResponseHeadersToRemove(), n)
			a.Clusters = append(a.Clusters, wc)
		}
	case nil:
		return errors.New("no cluster")
	default:
		return nil // cluster_header and plug-ins
	}
	return checkWeights(a.Clusters)
}

func (a *RouteAction) rewrite(pb *matcherv3.RegexMatchAndSubstitute) (err error) {
	if pb == nil {
		return nil
	}
	if a.RegexRewrite, err = regexp.Compile(pb.GetPattern().GetRegex()); err != nil {
		return fmt.Errorf("regex_rewrite: %w", err)
	}
	a.RegexSubstitution = pb.GetSubstitution()
	return nil
}

// grpcTimeout reads the bound on the client's own grpc-timeout; zero is none,
// but lets the client's count.
func (a *RouteAction) grpcTimeout(pb *routev3.RouteAction, n *notes) {
	limit := pb.GetMaxGrpcTimeout()
	if d := pb.GetMaxStreamDuration(); d != nil {
		n.rest("route.max_stream_duration", d, streamFields)
		if d.GetGrpcTimeoutHeaderMax() != nil {
			limit = d.GetGrpcTimeoutHeaderMax()
		}
	}
	if limit != nil {
		d := duration(limit, 0)
		a.MaxGRPCTimeout = &d
	}
}

var retryFields = fields("retry_on", "num_retries", "per_try_timeout", "retry_host_predicate",
	"host_selection_retry_max_attempts", "retriable_status_codes", "retry_back_off")

// retryConditions are Envoy's names for them.
var retryConditions = map[string]RetryOn{
	"5xx":                    Retry5xx,
	"gateway-error":          RetryGatewayError,
	"reset":                  RetryReset,
	"reset-before-request":   RetryResetBeforeRequest,
	"connect-failure":        RetryConnectFailure,
	"refused-stream":         RetryRefusedStream,
	"retriable-4xx":          RetryRetriable4xx,
	"retriable-status-codes": RetryRetriableStatusCodes,
	"cancelled":              RetryGRPCCancelled,
	"deadline-exceeded":      RetryGRPCDeadlineExceeded,
	"internal":               RetryGRPCInternal,
	"resource-exhausted":     RetryGRPCResourceExhausted,
	"unavailable":            RetryGRPCUnavailable,
}

func decodeRetry(pb *routev3.RetryPolicy, n *notes) *RetryPolicy {
	if pb == nil {
		return nil
	}
	n.rest("retry", pb, retryFields)
	p := &RetryPolicy{
		Max:           defaultRetries,
		PerTryTimeout: duration(pb.GetPerTryTimeout(), 0),
		BackoffBase:   duration(pb.GetRetryBackOff().GetBaseInterval(), 0),
		BackoffMax:    duration(pb.GetRetryBackOff().GetMaxInterval(), 0),
		HostAttempts:  int(max(pb.GetHostSelectionRetryMaxAttempts(), 1)),
	}
	if pb.GetNumRetries() != nil {
		p.Max = pb.GetNumRetries().GetValue()
	}
	for name := range strings.SplitSeq(pb.GetRetryOn(), ",") {
		name = strings.TrimSpace(name)
		on, known := retryConditions[name]
		if !known && name != "" {
			n.add("retry_on ", name)
		}
		p.On |= on
	}
	for _, s := range pb.GetRetriableStatusCodes() {
		p.Statuses = append(p.Statuses, int(s))
	}
	for _, h := range pb.GetRetryHostPredicate() {
		if h.GetTypedConfig().MessageIs((*previousv3.PreviousHostsPredicate)(nil)) {
			p.PreviousHosts = true
		} else {
			n.add("retry host predicate ", h.GetName())
		}
	}
	return p
}

// extend takes over additions and removals of headers.
func (m *HeaderMutations) extend(add []*corev3.HeaderValueOption, remove []string, n *notes) {
	m.Remove = append(m.Remove, internAll(remove)...)
	for _, o := range add {
		value := o.GetHeader().GetValue()
		if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		value, ok := literal(value)
		if !ok {
			// Sending the operator itself would be worse than nothing.
			n.add("header value with operators")
			continue
		}
		if value == "" && !o.GetKeepEmptyValue() {
			continue
		}
		m.Set = append(m.Set, HeaderValue{Name: intern(o.GetHeader().GetKey()), Value: value, Action: headerAction(o)})
	}
}

// literal undoes the escape of a percent sign, and reports whether that is all
// there is: %REQ(x)% and the like are replaced by Envoy per request.
func literal(v string) (string, bool) {
	if !strings.Contains(v, "%") {
		return v, true
	}
	rest := strings.ReplaceAll(v, "%%", "")
	return strings.ReplaceAll(v, "%%", "%"), !strings.Contains(rest, "%")
}

func headerAction(o *corev3.HeaderValueOption) HeaderAction {
	if o.GetAppend() != nil { // the old field
		if o.GetAppend().GetValue() {
			return AppendOrAdd
		}
		return OverwriteOrAdd
	}
	switch o.GetAppendAction() {
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		return AddIfAbsent
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		return OverwriteOrAdd
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		return OverwriteIfExists
	}
	return AppendOrAdd
}
