// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 control planes still send the fields that Envoy has deprecated

package resource

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// httpOptionsKey is where a cluster keeps its HTTP options.
const httpOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

var (
	httpOptionsFields = fields("common_http_protocol_options", "explicit_http_config",
		"use_downstream_protocol_config", "auto_config", "header_validation_config")
	commonHTTPFields = fields("idle_timeout", "max_requests_per_connection", "max_headers_count",
		"max_response_headers_kb")
)

// protocol reads which HTTP the cluster speaks.
func (c *Cluster) protocol(pb *clusterv3.Cluster, n *notes) error {
	if pb.GetHttp2ProtocolOptions() != nil { // the old field
		c.HTTP = HTTP2
	}
	if pb.GetProtocolSelection() == clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL {
		c.HTTP = Downstream
	}
	c.httpLimits(pb.GetCommonHttpProtocolOptions(), n)
	for key, a := range pb.GetTypedExtensionProtocolOptions() {
		var o upstreamhttpv3.HttpProtocolOptions
		ok, err := open(a, &o)
		if err != nil {
			return fmt.Errorf("protocol options %q: %w", key, err)
		}
		if key != httpOptionsKey || !ok {
			n.add("protocol options ", key)
			continue
		}
		n.rest("http", &o, httpOptionsFields)
		c.httpLimits(o.GetCommonHttpProtocolOptions(), n)
		c.version(&o, n)
	}
	return nil
}

func (c *Cluster) httpLimits(o *corev3.HttpProtocolOptions, n *notes) {
	n.rest("http", o, commonHTTPFields)
	if o.GetIdleTimeout() != nil {
		c.IdleTimeout = duration(o.GetIdleTimeout(), 0)
	}
	if v := o.GetMaxRequestsPerConnection().GetValue(); v > 0 {
		c.MaxRequestsPerConnection = v
	}
}

func (c *Cluster) version(o *upstreamhttpv3.HttpProtocolOptions, n *notes) {
	switch u := o.GetUpstreamProtocolOptions().(type) {
	case *upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_:
		c.HTTP = HTTP1
		if u.ExplicitHttpConfig.GetHttp2ProtocolOptions() != nil {
			c.HTTP = HTTP2
		}
		if u.ExplicitHttpConfig.GetHttp3ProtocolOptions() != nil {
			c.HTTP = HTTP2
			n.add("http.http3")
		}
	case *upstreamhttpv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
		c.HTTP = Downstream
	case *upstreamhttpv3.HttpProtocolOptions_AutoConfig:
		c.HTTP = AutoHTTP
	}
}
