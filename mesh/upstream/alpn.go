// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"slices"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// The protocols that Istio offers in ALPN. A sidecar chooses its filter chain
// by what is offered, not by what is agreed on: a client that offers no istio*
// protocol to a permissive port is taken for the application's own TLS.
const (
	alpnIstio        = "istio"
	alpnPeerExchange = "istio-peer-exchange"
	alpnH2           = "h2"
	alpnHTTP11       = "http/1.1"
	alpnIstioHTTP11  = "istio-http/1.1"
	alpnIstioH2      = "istio-h2"
)

var (
	rawIstio  = []string{alpnIstio}
	http1ALPN = []string{alpnIstioHTTP11, alpnIstio, alpnHTTP11}
	http2ALPN = []string{alpnIstioH2, alpnIstio, alpnH2}
	autoALPN  = []string{alpnIstioH2, alpnIstioHTTP11, alpnIstio, alpnH2, alpnHTTP11}
)

// rawALPN is what a flow of unknown bytes offers: istio alone where the
// cluster speaks Istio, so that the peer's TCP chain takes it. Never
// istio-peer-exchange, which promises a metadata prefix that is not spoken
// here, and never an HTTP protocol.
func rawALPN(own []string) []string {
	if len(own) == 0 || slices.Contains(own, alpnIstio) || slices.Contains(own, alpnPeerExchange) {
		return rawIstio
	}
	return own
}

// httpALPN is what an HTTP connection offers, as the filter istio.alpn sets it,
// or the cluster's own list (less what cannot be spoken) where the cluster
// declines that or the listener lacks the filter.
func httpALPN(cfg *resource.Cluster, own []string, v Version, istio bool) []string {
	if istio && cfg.Istio.ALPNOverride != "false" {
		switch v {
		case HTTP1:
			return http1ALPN
		case HTTP2:
			return http2ALPN
		}
		return autoALPN
	}
	list := make([]string, 0, len(own)+1)
	for _, p := range own {
		h2 := p == alpnH2 || p == alpnIstioH2
		h1 := p == alpnHTTP11 || p == alpnIstioHTTP11
		if p == alpnPeerExchange || v == HTTP1 && h2 || v == HTTP2 && h1 {
			continue
		}
		list = append(list, p)
	}
	return list
}

func isH2(proto string) bool { return proto == alpnH2 || proto == alpnIstioH2 }
