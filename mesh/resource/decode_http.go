// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"strings"
	"time"

	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
)

// What Envoy does where a connection manager says nothing.
const (
	defaultHTTPIdle   = time.Hour
	defaultStreamIdle = 5 * time.Minute
	// maxHeaderKiB is the most that Envoy lets a head be.
	maxHeaderKiB = 8192
)

// hcmFields are understood; those of the last lines have no meaning on the way
// out, or are the way things are done here.
var hcmFields = fields("codec_type", "http_filters", "rds", "route_config", "scoped_routes",
	"common_http_protocol_options", "http_protocol_options", "max_request_headers_kb", "stream_idle_timeout",
	"request_timeout", "access_log", "use_remote_address", "generate_request_id", "preserve_external_request_id",
	"upgrade_configs", "normalize_path", "merge_slashes", "path_with_escaped_slashes_action",
	"forward_client_cert_details", "tracing",
	"stat_prefix", "http2_protocol_options", "drain_timeout", "drain_timeout_jitter", "delayed_close_timeout",
	"access_log_flush_interval", "flush_access_log_on_new_request", "access_log_options", "proxy_100_continue",
	"server_name", "request_id_extension", "stream_error_on_invalid_http_message", "stream_flush_timeout",
	"set_current_client_cert_details", "internal_address_config")

func (c *FilterChain) httpManager(pb *hcmv3.HttpConnectionManager, n *notes) error {
	n.rest("hcm", pb, hcmFields)
	n.accessLogs(pb.GetAccessLog())
	common, h1 := pb.GetCommonHttpProtocolOptions(), pb.GetHttpProtocolOptions()
	n.rest("hcm", common, commonHTTPFields)
	m := &HTTPManager{
		MaxHeaderBytes:    int(min(pb.GetMaxRequestHeadersKb().GetValue(), maxHeaderKiB)) * 1024,
		IdleTimeout:       duration(common.GetIdleTimeout(), defaultHTTPIdle),
		StreamIdleTimeout: duration(pb.GetStreamIdleTimeout(), defaultStreamIdle),
		RequestTimeout:    duration(pb.GetRequestTimeout(), 0),
		AcceptHTTP10:      h1.GetAcceptHttp_10(),
		DefaultHostHTTP1:  h1.GetDefaultHostForHttp_10(),
		NormalizePath:     pb.GetNormalizePath().GetValue(),
		MergeSlashes:      pb.GetMergeSlashes(),
		GenerateReqID:     boolOr(pb.GetGenerateRequestId(), true),
		PreserveReqID:     pb.GetPreserveExternalRequestId(),
		AppendXFF:         pb.GetUseRemoteAddress().GetValue(),
		ForwardClientCert: pb.GetForwardClientCertDetails() == hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY,
	}
	if pb.GetTracing() != nil {
		n.add("hcm.tracing")
	}
	if pb.GetPathWithEscapedSlashesAction() > hcmv3.HttpConnectionManager_KEEP_UNCHANGED {
		n.add("hcm.path_with_escaped_slashes_action")
	}
	for _, u := range pb.GetUpgradeConfigs() {
		if boolOr(u.GetEnabled(), true) {
			m.Upgrades = append(m.Upgrades, intern(strings.ToLower(u.GetUpgradeType())))
		}
		if len(u.GetFilters()) > 0 {
			n.add("hcm.upgrade_configs.filters")
		}
	}
	if pb.GetCodecType() == hcmv3.HttpConnectionManager_HTTP3 {
		c.refuse("hcm.codec_type HTTP3", n)
		return nil
	}
	if err := m.routes(pb); err != nil {
		return err
	}
	if m.Routes == nil && m.RouteName == "" {
		c.refuse("hcm.scoped_routes", n)
		return nil
	}
	c.HTTP = m
	return c.httpFilters(pb.GetHttpFilters(), n)
}

// routes reads where the routes are. Scoped ones leave both places empty.
func (m *HTTPManager) routes(pb *hcmv3.HttpConnectionManager) error {
	switch spec := pb.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		m.RouteName = intern(spec.Rds.GetRouteConfigName())
		if m.RouteName == "" {
			return fmt.Errorf("rds without a name")
		}
	case *hcmv3.HttpConnectionManager_RouteConfig:
		rc, err := decodeRoutes(spec.RouteConfig)
		if err != nil {
			return fmt.Errorf("route_config: %w", err)
		}
		m.Routes = rc
	case nil:
		return fmt.Errorf("http connection manager without routes")
	}
	return nil
}

// httpFilters walks the HTTP filters, of which the router is the last.
func (c *FilterChain) httpFilters(list []*hcmv3.HttpFilter, n *notes) error {
	for _, f := range list {
		if f.GetDisabled() {
			continue
		}
		config := f.GetTypedConfig()
		switch typeName(config) {
		case "envoy.extensions.filters.http.router.v3.Router":
			return nil
		case "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig":
			c.HTTP.IstioALPN = true
			continue
		case "envoy.extensions.filters.http.cors.v3.Cors":
			continue // does nothing but for routes with a policy, noted there
		case "envoy.extensions.filters.http.fault.v3.HTTPFault":
			var fault faultv3.HTTPFault
			if _, err := open(config, &fault); err != nil {
				return fmt.Errorf("filter %q: %w", f.GetName(), err)
			}
			if proto.Size(&fault) > 0 { // likewise
				n.add("http filter ", f.GetName())
			}
			continue
		}
		switch classify(f.GetName(), config) {
		case telemetry:
		case guard:
			c.refuse("http filter "+f.GetName(), n)
			return nil
		default:
			n.add("http filter ", f.GetName())
		}
	}
	c.refuse("no router", n)
	return nil
}
