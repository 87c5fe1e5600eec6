// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// defaultConnectTimeout serves clusters without one. istiod sets 10 s, Envoy's
// own default is 5 s.
const defaultConnectTimeout = 5 * time.Second

// A Target is one endpoint of one cluster.
type Target struct {
	Cluster *resource.Cluster
	// Host is the endpoint chosen; nil for the original destination.
	Host *balance.Host
	// Dst is the address dialled when Host is nil.
	Dst netip.AddrPort
	// ALPN is offered instead of what [Describe] says; nil: as Describe says.
	ALPN []string
	// Dial opens the socket instead of Config.Dial: passed-through traffic
	// has a dialer of its own. The pool keeps such connections apart.
	Dial DialFunc
}

// Endpoint returns the endpoint; for an original destination one is made up.
func (t *Target) Endpoint() *resource.Endpoint {
	if t.Host != nil {
		return t.Host.Endpoint
	}
	return &resource.Endpoint{Address: t.Dst, Weight: 1}
}

// Address returns the address that is dialled.
func (t *Target) Address() netip.AddrPort {
	if t.Host != nil {
		return t.Host.Endpoint.Address
	}
	return t.Dst
}

// Transport returns how the endpoint is reached.
func (t *Target) Transport() resource.Transport {
	if t.Host == nil && t.Cluster.Discovery == resource.OriginalDst && len(t.Cluster.Transports) == 0 {
		return t.Cluster.Transport // saves making up an endpoint
	}
	return t.Cluster.TransportFor(t.Endpoint())
}

func (t *Target) connectTimeout() time.Duration {
	if t.Cluster.ConnectTimeout > 0 {
		return t.Cluster.ConnectTimeout
	}
	return defaultConnectTimeout
}

// Pick chooses an endpoint of a cluster. lb is the cluster's cell in the
// catalog; dst is where the client wanted to go, which is the endpoint of
// ORIGINAL_DST clusters. Clusters of DNS names are resolved first, within ctx
// and the connect timeout; their endpoints live here and not in lb.
//
// The caller brackets the use of the target by Host.Acquire and Host.Release,
// unless Host is nil.
func (m *Manager) Pick(ctx context.Context, cfg *resource.Cluster, lb *balance.Cluster, dst netip.AddrPort, p *balance.Pick) (Target, error) {
	switch cfg.Discovery {
	case resource.OriginalDst:
		if !dst.IsValid() {
			return Target{}, noEndpoint(cfg, errors.New("no original destination"))
		}
		return Target{Cluster: cfg, Dst: dst}, nil
	case resource.StrictDNS, resource.LogicalDNS:
		resolved, err := m.names.endpoints(ctx, cfg)
		if err != nil {
			return Target{}, noEndpoint(cfg, err)
		}
		lb = resolved
	}
	if lb == nil {
		return Target{}, noEndpoint(cfg, balance.ErrNoEndpoint)
	}
	h, err := lb.Pick(p)
	if err != nil {
		return Target{}, noEndpoint(cfg, err)
	}
	return Target{Cluster: cfg, Host: h}, nil
}

func noEndpoint(cfg *resource.Cluster, err error) error {
	return &Error{Reason: ReasonNoEndpoint, Err: fmt.Errorf("pick from %s: %w", cfg.Name, err)}
}

// Describe returns how an endpoint is reached by a raw TCP flow: the kind, SNI
// and SANs of its transport with the ALPN that [Manager.Connect] offers.
func Describe(cfg *resource.Cluster, e *resource.Endpoint) resource.Transport {
	t := cfg.TransportFor(e)
	if t.Kind == resource.IstioMTLS {
		t.ALPN = rawALPN(t.ALPN)
	} else {
		t.ALPN = nil
	}
	return t
}

// DescribeHTTP is Describe for a request of an HTTP/1.1 client, with the ALPN
// that [Manager.HTTP] offers. istio says that the listener has the filter
// istio.alpn.
func DescribeHTTP(cfg *resource.Cluster, e *resource.Endpoint, istio bool) resource.Transport {
	t := cfg.TransportFor(e)
	if t.Kind != resource.IstioMTLS {
		t.ALPN = nil
		return t
	}
	v := HTTP1
	switch cfg.HTTP {
	case resource.HTTP2:
		v = HTTP2
	case resource.AutoHTTP:
		v = Auto
	}
	t.ALPN = httpALPN(cfg, t.ALPN, v, istio)
	return t
}
