// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// serverYAML ends mutual TLS in front of iperf3, as the sidecar of a pod does.
const serverYAML = `
static_resources:
  listeners:
  - name: inbound
    address: {socket_address: {address: 0.0.0.0, port_value: $SERVERPORT}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [istio-peer-exchange, h2, http/1.1]
            tls_certificates:
            - {certificate_chain: {filename: $DIR/server.pem}, private_key: {filename: $DIR/server.key}}
            validation_context: {trusted_ca: {filename: $DIR/roots.pem}}
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: inbound
          cluster: app
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $IPERFPORT}}}}]}]
`

// sidecarYAML takes what nft redirects to it, and originates mutual TLS.
const sidecarYAML = `
static_resources:
  listeners:
  - name: outbound
    address: {socket_address: {address: 0.0.0.0, port_value: $SIDECARPORT}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: outbound
          cluster: peer
  clusters:
  - name: peer
    type: STATIC
    load_assignment:
      cluster_name: peer
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: $SERVERADDRESS, port_value: $SERVERPORT}}}}]}]
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: outbound_.$IPERFPORT_._.iperf.bench.svc.cluster.local
        common_tls_context:
          alpn_protocols: [istio]
          tls_certificates:
          - {certificate_chain: {filename: $DIR/client.pem}, private_key: {filename: $DIR/client.key}}
          validation_context:
            trusted_ca: {filename: $DIR/roots.pem}
            match_typed_subject_alt_names:
            - {san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/bench/sa/default"}}
`

func writeEnvoys(dir string) error {
	r := strings.NewReplacer(
		"$DIR", dir,
		"$SERVERPORT", fmt.Sprint(serverPort),
		"$SERVERADDRESS", serverAddress,
		"$SIDECARPORT", fmt.Sprint(sidecarPort),
		"$IPERFPORT", fmt.Sprint(iperfPort),
	)
	for name, text := range map[string]string{"server.yaml": serverYAML, "sidecar.yaml": sidecarYAML} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(r.Replace(text)), 0o644); err != nil {
			return err
		}
	}
	return nil
}
