// SPDX-License-Identifier: Apache-2.0

// Package mesh makes this node a member of an Istio mesh that sends, and
// never receives, connections.
//
// It joins its sub-packages and knows nothing of where flows come from:
//
//	istiod ──> xds ──> resource ──> catalog       the control plane, one writer
//	istiod <── identity                           key, certificate, roots
//	                     │ Snapshot, one atomic load
//	flow ──> proxy ──> httpproxy ──> upstream     the data path
//	name ──> dns
//
// A [Mesh] is made by [New], works while [Mesh.Run] runs, and is ready when
// [Mesh.Ready] is closed: it then has an identity and a complete [catalog.Snapshot].
// Before that every flow is refused, since what belongs to the mesh cannot be
// told from what does not. When istiod goes away later, the last Snapshot and
// the certificate serve on until they change or end.
//
// Captured connections enter by [Mesh.ServeTCP] and [Mesh.ServeUDP]; whoever
// captures them adapts its own types to [proxy.Flow] and [proxy.UDPFlow].
package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/dns"
	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

// Config is what a Mesh needs to know. Istiod, Roots, Token, Node and Dial
// are required.
type Config struct {
	// Istiod is the host:port to dial, ServerName the name that its
	// certificate must have; empty: istiod.istio-system.svc.
	Istiod     string
	ServerName string
	// Roots returns the PEM certificates that istiod is verified with. It is
	// called at each handshake.
	Roots func() ([]byte, error)
	// Token returns a service-account token for istiod. It is called for
	// each stream and signing request.
	Token func(context.Context) (string, error)
	// Node is how this node presents itself.
	Node xds.NodeConfig
	// CertTTL is the lifetime asked for certificates; 0: 24 hours.
	CertTTL time.Duration

	// Dial opens the sockets towards istiod, gateways, workloads and the
	// world outside.
	Dial upstream.DialFunc
	// Lookup resolves the names of STRICT_DNS and LOGICAL_DNS clusters by
	// the host's own resolvers.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)

	// Forward asks the host's resolvers what the mesh does not know.
	Forward func(ctx context.Context, q *mdns.Msg, tcp bool) (*mdns.Msg, error)
	// Search holds the search domains of the host's resolver.
	Search []string
	// LocalNames are answered before all others.
	LocalNames map[string]netip.Addr
	// CaptureDNS answers port 53 of every address.
	CaptureDNS bool
	// OutsideAllow passes destinations that the mesh does not know even
	// where its outbound policy is REGISTRY_ONLY.
	OutsideAllow bool

	// Version is shown by the metric istio_build.
	Version      string
	Logger       *slog.Logger
	Registerer   prometheus.Registerer // nil: metrics are kept nowhere
	Access       io.Writer             // access records; nil: none
	AccessFormat string                // "text" or "json"
}

// A Mesh is this node's membership. Its methods are safe for concurrent use.
type Mesh struct {
	// Set by New, then read-only.
	cfg     Config
	log     *slog.Logger
	conn    *grpc.ClientConn
	ids     *identity.Store
	xds     *xds.Client
	catalog *catalog.Catalog
	up      *upstream.Manager
	http    *httpproxy.Proxy
	proxy   *proxy.Proxy
	dns     *dns.Server
	tel     *telemetry.Telemetry
	ready   chan struct{} // closed by Run
	bell    bell
}

// New validates cfg and builds the parts. It starts nothing and dials nobody.
func New(cfg Config) (*Mesh, error) {
	switch {
	case cfg.Istiod == "":
		return nil, errors.New("mesh: no istiod address")
	case cfg.Roots == nil, cfg.Token == nil:
		return nil, errors.New("mesh: istiod roots and token are required")
	case cfg.Dial == nil:
		return nil, errors.New("mesh: no dial function")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mesh{cfg: cfg, log: cfg.Logger, ready: make(chan struct{})}
	m.catalog = catalog.New()
	m.catalog.SetNode(cfg.Node.Namespace, cfg.Node.DNSDomain)
	if err := m.joinControlPlane(); err != nil {
		return nil, err
	}
	if err := m.joinDataPath(); err != nil {
		return nil, errors.Join(err, m.conn.Close())
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(&collector{m: m}); err != nil {
			return nil, errors.Join(fmt.Errorf("register metrics: %w", err), m.conn.Close())
		}
	}
	return m, nil
}

func (m *Mesh) joinDataPath() (err error) {
	w := telemetry.Workload{
		Name:              m.cfg.Node.WorkloadName,
		Namespace:         m.cfg.Node.Namespace,
		Cluster:           m.cfg.Node.ClusterID,
		App:               m.cfg.Node.Labels["app"],
		Version:           m.cfg.Node.Labels["version"],
		CanonicalName:     m.cfg.Node.Labels["service.istio.io/canonical-name"],
		CanonicalRevision: m.cfg.Node.Labels["service.istio.io/canonical-revision"],
		Principal:         m.principal,
	}
	m.tel, err = telemetry.New(telemetry.Config{
		Registerer: m.cfg.Registerer, Workload: w, Version: m.cfg.Version,
		Access: m.cfg.Access, AccessFormat: m.cfg.AccessFormat, Logger: m.log.With("component", "telemetry"),
	})
	if err != nil {
		return err
	}
	m.up = upstream.New(upstream.Config{
		Identity: m.ids, Dial: m.cfg.Dial, Lookup: m.cfg.Lookup, Logger: m.log.With("component", "upstream"),
	})
	m.http = httpproxy.New(httpproxy.Config{
		Catalog: m.catalog, Upstream: m.up, Telemetry: m.tel, Passthrough: m.cfg.Dial,
		OutsideAllow: m.cfg.OutsideAllow, Logger: m.log.With("component", "http"),
	})
	m.proxy = proxy.New(proxy.Config{
		Catalog: m.catalog, Upstream: m.up, HTTP: m.http, Telemetry: m.tel, Passthrough: m.cfg.Dial,
		OutsideAllow: m.cfg.OutsideAllow, Logger: m.log.With("component", "proxy"),
	})
	m.dns = dns.New(dns.Config{
		Snapshot: m.catalog.Snapshot, Forward: m.cfg.Forward, Search: m.cfg.Search, Local: m.cfg.LocalNames,
		Logger: m.log.With("component", "dns"),
	})
	return nil
}

// Run keeps the node in the mesh until ctx ends. It has joined everything it
// started when it returns.
func (m *Mesh) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.ids.Run(ctx) })
	g.Go(func() error { return m.xds.Run(ctx) })
	g.Go(func() error { return m.up.Run(ctx) })
	g.Go(func() error { return m.tel.Run(ctx) })
	g.Go(func() error {
		for _, part := range []<-chan struct{}{m.ids.Ready(), m.catalog.Ready()} {
			select {
			case <-part:
			case <-ctx.Done():
				return nil
			}
		}
		m.log.Info("joined the mesh", "identity", m.principal())
		close(m.ready)
		return nil
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, m.conn.Close())
}

// Ready is closed when the node has an identity and a complete Snapshot.
func (m *Mesh) Ready() <-chan struct{} { return m.ready }

// ServeTCP serves one captured connection and returns when it has ended.
func (m *Mesh) ServeTCP(ctx context.Context, f proxy.Flow) {
	if m.cfg.CaptureDNS && f.Destination().Port() == dnsPort {
		c, err := f.Accept()
		if err != nil {
			return
		}
		m.dns.ServeConn(ctx, c)
		return
	}
	m.proxy.ServeTCP(ctx, f)
}

// ServeUDP serves one captured flow of datagrams and returns when it has ended.
func (m *Mesh) ServeUDP(ctx context.Context, f proxy.UDPFlow) {
	if m.cfg.CaptureDNS && f.Destination().Port() == dnsPort {
		c, err := f.Accept()
		if err != nil {
			return
		}
		m.dns.ServeFlow(ctx, c)
		return
	}
	m.proxy.ServeUDP(ctx, f)
}

const dnsPort = 53

// DNS answers for the names of the mesh and forwards the rest.
func (m *Mesh) DNS() *dns.Server { return m.dns }

// Echo reports whether a ping of a may be answered: it is an address of the
// mesh behind which an endpoint is healthy.
func (m *Mesh) Echo(a netip.Addr) bool {
	s := m.catalog.Snapshot()
	return s != nil && s.Echo(a)
}

// principal is the SPIFFE ID of this node, or empty before it has one.
func (m *Mesh) principal() string {
	if c := m.ids.Current(); c != nil {
		return c.ID
	}
	return ""
}
