// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

var (
	routeConfigFields = fields("name", "virtual_hosts", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "ignore_port_in_host_matching",
		"validate_clusters", "max_direct_response_body_size_bytes", "metadata", "cluster_specifier_plugins")
	virtualHostFields = fields("name", "domains", "routes", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "include_request_attempt_count", "retry_policy",
		"typed_per_filter_config", "virtual_clusters", "metadata", "per_request_buffer_limit_bytes",
		"request_body_buffer_limit")
	routeFields = fields("name", "match", "route", "redirect", "direct_response", "filter_action",
		"non_forwarding_action", "metadata", "decorator", "typed_per_filter_config", "request_headers_to_add",
		"request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove", "tracing",
		"per_request_buffer_limit_bytes", "stat_prefix", "request_body_buffer_limit")
)

// DecodeRoutes reads a RouteConfiguration.
func DecodeRoutes(a *anypb.Any) (*RouteConfiguration, error) {
	var pb routev3.RouteConfiguration
	if err := unpack("routes", a, &pb); err != nil {
		return nil, err
	}
	rc, err := decodeRoutes(&pb)
	if err != nil {
		return nil, fmt.Errorf("decode routes %q: %w", pb.GetName(), err)
	}
	return rc, nil
}

func decodeRoutes(pb *routev3.RouteConfiguration) (*RouteConfiguration, error) {
	var n notes
	n.rest("routes", pb, routeConfigFields)
	rc := &RouteConfiguration{Name: intern(pb.GetName()), IgnorePort: pb.GetIgnorePortInHostMatching()}
	for _, vh := range pb.GetVirtualHosts() {
		host, err := decodeVirtualHost(vh, &n)
		if err != nil {
			return nil, fmt.Errorf("virtual host %q: %w", vh.GetName(), err)
		}
		// What the whole configuration adds comes after what the host does, in
		// Envoy's order from the particular to the general.
		host.RequestHeaders.extend(pb.GetRequestHeadersToAdd(), pb.GetRequestHeadersToRemove(), &n)
		host.ResponseHeaders.extend(pb.GetResponseHeadersToAdd(), pb.GetResponseHeadersToRemove(), &n)
		rc.VirtualHosts = append(rc.VirtualHosts, host)
	}
	rc.Ignored = n.done()
	return rc, nil
}

func decodeVirtualHost(pb *routev3.VirtualHost, n *notes) (*VirtualHost, error) {
	n.rest("virtual host", pb, virtualHostFields)
	n.perFilter(pb.GetTypedPerFilterConfig())
	vh := &VirtualHost{Name: intern(pb.GetName()), CountAttempts: pb.GetIncludeRequestAttemptCount()}
	for _, d := range pb.GetDomains() {
		if d == "" || d != "*" && strings.Count(d, "*") > 0 && (strings.Count(d, "*") > 1 || d[0] != '*' && d[len(d)-1] != '*') {
			return nil, fmt.Errorf("domain %q: one star, at the start or the end", d)
		}
		vh.Domains = append(vh.Domains, intern(strings.ToLower(d)))
	}
	vh.RequestHeaders.extend(pb.GetRequestHeadersToAdd(), pb.GetRequestHeadersToRemove(), n)
	vh.ResponseHeaders.extend(pb.GetResponseHeadersToAdd(), pb.GetResponseHeadersToRemove(), n)
	if pb.GetMatcher() != nil {
		return vh, nil // noted; without routes it answers 404
	}
	for i, r := range pb.GetRoutes() {
		route, err := decodeRoute(r, pb.GetRetryPolicy())
		if err != nil {
			return nil, fmt.Errorf("route %d %q: %w", i, r.GetName(), err)
		}
		vh.Routes = append(vh.Routes, route)
	}
	return vh, nil
}

// perFilter notes options of filters for a host, a route or a cluster.
func (n *notes) perFilter(m map[string]*anypb.Any) {
	for name := range m {
		n.add("per-route ", name)
	}
}

// decodeRoute reads a route. fallback is the retry policy of its host.
func decodeRoute(pb *routev3.Route, fallback *routev3.RetryPolicy) (*Route, error) {
	var n notes
	n.rest("route", pb, routeFields)
	n.perFilter(pb.GetTypedPerFilterConfig())
	r := &Route{Name: intern(pb.GetName())}
	r.RequestHeaders.extend(pb.GetRequestHeadersToAdd(), pb.GetRequestHeadersToRemove(), &n)
	r.ResponseHeaders.extend(pb.GetResponseHeadersToAdd(), pb.GetResponseHeadersToRemove(), &n)
	if err := r.Match.decode(pb.GetMatch()); err != nil {
		return nil, err
	}
	var err error
	switch a := pb.GetAction().(type) {
	case *routev3.Route_Route:
		r.Action, err = decodeAction(a.Route, fallback, &n)
		if r.Action == nil && err == nil {
			r.Direct = notBuilt("route.route without a fixed cluster", &n)
		}
	case *routev3.Route_Redirect:
		r.Redirect, err = decodeRedirect(a.Redirect, &n)
	case *routev3.Route_DirectResponse:
		r.Direct, err = decodeDirect(a.DirectResponse, &n)
	case *routev3.Route_FilterAction:
		r.Direct = notBuilt("route.filter_action", &n)
	case *routev3.Route_NonForwardingAction:
		r.Direct = notBuilt("route.non_forwarding_action", &n)
	default:
		return nil, errors.New("no action")
	}
	r.Ignored = n.done()
	return r, err
}

// notBuilt answers in place of an action that cannot be taken: going on to the
// next route would send the request to a place that was not meant.
func notBuilt(what string, n *notes) *DirectResponse {
	n.add(what)
	return &DirectResponse{Status: http.StatusServiceUnavailable, Body: []byte("not supported: " + what + "\n")}
}

var redirectFields = fields("https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect",
	"prefix_rewrite", "response_code", "strip_query")

func decodeRedirect(pb *routev3.RedirectAction, n *notes) (*Redirect, error) {
	n.rest("redirect", pb, redirectFields)
	if pb.GetPortRedirect() > 65535 {
		return nil, fmt.Errorf("redirect to port %d", pb.GetPortRedirect())
	}
	r := &Redirect{
		Status:     http.StatusMovedPermanently,
		Scheme:     strings.ToLower(pb.GetSchemeRedirect()),
		Host:       pb.GetHostRedirect(),
		Port:       uint16(pb.GetPortRedirect()),
		Path:       pb.GetPathRedirect(),
		HTTPS:      pb.GetHttpsRedirect(),
		StripQuery: pb.GetStripQuery(),
	}
	if p, ok := pb.GetPathRewriteSpecifier().(*routev3.RedirectAction_PrefixRewrite); ok {
		r.PrefixRewrite, r.HasPrefix = p.PrefixRewrite, true
	}
	switch pb.GetResponseCode() {
	case routev3.RedirectAction_FOUND:
		r.Status = http.StatusFound
	case routev3.RedirectAction_SEE_OTHER:
		r.Status = http.StatusSeeOther
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		r.Status = http.StatusTemporaryRedirect
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		r.Status = http.StatusPermanentRedirect
	}
	return r, nil
}

var directFields = fields("status", "body")

func decodeDirect(pb *routev3.DirectResponseAction, n *notes) (*DirectResponse, error) {
	n.rest("direct_response", pb, directFields)
	if s := pb.GetStatus(); s < 200 || s > 599 {
		return nil, fmt.Errorf("direct response with status %d", s)
	}
	d := &DirectResponse{Status: int(pb.GetStatus())}
	switch {
	case pb.GetBody().GetInlineString() != "":
		d.Body = []byte(pb.GetBody().GetInlineString())
	case len(pb.GetBody().GetInlineBytes()) > 0:
		d.Body = slices.Clone(pb.GetBody().GetInlineBytes())
	case pb.GetBody().GetSpecifier() != nil:
		n.add("direct_response.body from a file")
	}
	return d, nil
}
