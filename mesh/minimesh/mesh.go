// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// firstVIP is where service addresses are given out from; a cluster's own
// first ones are taken by the API server and DNS.
var firstVIP = netip.AddrFrom4([4]byte{10, 96, 0, 10})

var errClosed = errors.New("the mesh is closed")

// A Mesh is a running mesh. Its methods may be called from any goroutine,
// between Start and Close unless they say otherwise.
type Mesh struct {
	// Set by New, then read-only.
	cfg       Config
	logger    *slog.Logger
	authority *authority
	mint      *mint

	wg  sync.WaitGroup
	hub hub

	istiodMu   sync.Mutex
	istiod     *grpc.Server // nil: away
	istiodAddr netip.AddrPort

	mu       sync.Mutex // guards the rest
	services map[string]*deployment
	outbound bool // the policy is REGISTRY_ONLY
	gateway  *gateway
	version  int

	acceptMu sync.Mutex
	accepts  []Accept
	tries    map[string]int // of /flaky, by key

	closed       atomic.Bool // set by Close; what opens something looks at it under its mutex
	refuseTokens atomic.Bool
	certTTL      atomic.Int64
	signed       atomic.Int64
}

// New checks a configuration. It opens nothing; Start does.
func New(cfg Config) (*Mesh, error) {
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	}
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = defaultTrustDomain
	}
	if cfg.ClusterID == "" {
		cfg.ClusterID = defaultClusterID
	}
	if cfg.CertTTL == 0 {
		cfg.CertTTL = defaultCertTTL
	}
	if cfg.TokenTTL == 0 {
		cfg.TokenTTL = defaultTokenTTL
	}
	if cfg.Services == nil {
		cfg.Services = DefaultServices()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, s := range cfg.Services {
		if _, err := s.complete(); err != nil {
			return nil, err
		}
	}
	a, err := newAuthority(cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	m := &Mesh{
		cfg: cfg, logger: cfg.Logger, authority: a, mint: newMint(),
		services: map[string]*deployment{},
		outbound: cfg.RegistryOnly,
	}
	m.certTTL.Store(int64(cfg.CertTTL))
	m.hub.changed = sync.NewCond(&m.hub.mu)
	m.hub.views = map[string]*view{}
	m.hub.sessions = map[*session]bool{}
	return m, nil
}

// Run starts the mesh and serves until ctx ends.
func (m *Mesh) Run(ctx context.Context) error {
	if err := m.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	m.Close()
	return nil
}

// Start opens istiod, the gateway and the workloads, and returns when clients
// may come. On an error nothing is left open.
func (m *Mesh) Start() (err error) {
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.Gateway {
		if m.gateway, err = m.openGateway(); err != nil {
			return err
		}
	}
	for _, s := range m.cfg.Services {
		if err := m.deploy(s); err != nil {
			return err
		}
	}
	m.publishLocked()
	return m.StartIstiod()
}

// Close ends everything that Start and later calls have opened.
func (m *Mesh) Close() {
	m.closed.Store(true)
	m.StopIstiod()
	m.mu.Lock()
	if m.gateway != nil {
		m.gateway.close()
	}
	for _, d := range m.services {
		d.close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// SetService adds a service or changes it. Endpoints of the same name keep
// their sockets and connections as long as address, ports, identity and TLS
// mode stay.
func (m *Mesh) SetService(s Service) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.deploy(s); err != nil {
		return err
	}
	m.publishLocked()
	return nil
}

// RemoveService ends a service and its workloads.
func (m *Mesh) RemoveService(name, namespace string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	host := (&Service{Name: name, Namespace: namespace}).host()
	if d := m.services[host]; d != nil {
		d.close()
		delete(m.services, host)
		m.publishLocked()
	}
}

// SetRegistryOnly changes what becomes of destinations that the mesh does not
// know.
func (m *Mesh) SetRegistryOnly(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.outbound = on
	m.publishLocked()
}

// SetFault makes one endpoint misbehave, or behave again. Clients are not told.
// Connections that are open keep what they have.
func (m *Mesh) SetFault(name, namespace, endpoint string, f Fault) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	host := (&Service{Name: name, Namespace: namespace}).host()
	d := m.services[host]
	if d == nil || d.workloads[endpoint] == nil {
		return fmt.Errorf("set fault: no endpoint %q of %q", endpoint, host)
	}
	return d.workloads[endpoint].setFault(f)
}

// deploy brings up what a service needs and forgets what it no longer has;
// m.mu is held.
func (m *Mesh) deploy(s Service) error {
	if m.closed.Load() {
		return errClosed
	}
	s, err := s.complete()
	if err != nil {
		return err
	}
	old := m.services[s.host()]
	if len(s.VIPs) == 0 && !s.Headless {
		if old != nil && !old.Headless {
			s.VIPs = old.VIPs
		} else {
			s.VIPs = []netip.Addr{m.freeVIP()}
		}
	}
	d, err := m.newDeployment(s, old)
	if err != nil {
		return err
	}
	m.services[s.host()] = d
	return nil
}

// freeVIP returns the first address of the service range that is not taken.
func (m *Mesh) freeVIP() netip.Addr {
	taken := map[netip.Addr]bool{}
	for _, d := range m.services {
		for _, a := range d.VIPs {
			taken[a] = true
		}
	}
	for _, s := range m.cfg.Services {
		for _, a := range s.VIPs {
			taken[a] = true
		}
	}
	a := firstVIP
	for taken[a] {
		a = a.Next()
	}
	return a
}

// publishLocked tells the clients of the present state; m.mu is held.
func (m *Mesh) publishLocked() {
	w := &world{registryOnly: m.outbound, trustDomain: m.cfg.TrustDomain, clusterID: m.cfg.ClusterID}
	if m.gateway != nil {
		w.gateway = m.gateway.addr
	}
	for _, d := range m.services {
		w.services = append(w.services, d.placed())
		w.dual = w.dual || slices.ContainsFunc(d.VIPs, netip.Addr.Is6)
	}
	slices.SortFunc(w.services, byHost)
	m.version++
	m.hub.publish(time.Now().UTC().Format(time.RFC3339)+"/"+strconv.Itoa(m.version), w.build)
}

// WaitSynced waits until at least n clients are connected and all of them have
// acknowledged everything that they were sent.
func (m *Mesh) WaitSynced(ctx context.Context, n int) error {
	return m.hub.wait(ctx, func() bool { return m.hub.synced(n) })
}

// WaitClients waits until exactly n clients are connected.
func (m *Mesh) WaitClients(ctx context.Context, n int) error {
	return m.hub.wait(ctx, func() bool { return len(m.hub.sessions) == n })
}

// wait waits for a condition on the sessions.
func (h *hub) wait(ctx context.Context, done func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.changed.Broadcast()
	})
	defer stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !done() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for clients: %w", err)
		}
		h.changed.Wait()
	}
	return nil
}

// NACKs returns what clients have refused so far.
func (m *Mesh) NACKs() []NACK {
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	return slices.Clone(m.hub.nacks)
}

// addrPort is the address of a TCP listener.
func addrPort(a net.Addr) netip.AddrPort {
	t := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(t.Addr().Unmap(), t.Port())
}

// IstiodAddr is where istiod listens; it stays the same for life.
func (m *Mesh) IstiodAddr() netip.AddrPort {
	m.istiodMu.Lock()
	defer m.istiodMu.Unlock()
	return m.istiodAddr
}

// RootPEM is the trust bundle of the mesh.
func (m *Mesh) RootPEM() []byte { return certPEM(m.authority.root.Raw) }

// TrustDomain and ClusterID are those of the configuration.
func (m *Mesh) TrustDomain() string { return m.cfg.TrustDomain }

// ClusterID is the one that clients must name.
func (m *Mesh) ClusterID() string { return m.cfg.ClusterID }

// SPIFFE is the identity of a service account.
func (m *Mesh) SPIFFE(namespace, account string) string {
	return m.authority.spiffe(namespace, account)
}

// MintToken makes a token with which a service account can join.
func (m *Mesh) MintToken(account, namespace string) string {
	return m.Mint(Claims{ServiceAccount: account, Namespace: namespace})
}

// Mint makes a token of any kind.
func (m *Mesh) Mint(c Claims) string {
	if c.Audience == "" {
		c.Audience = AudienceCA
	}
	if c.TTL == 0 {
		c.TTL = m.cfg.TokenTTL
	}
	return m.mint.token(c)
}

// VerifyToken returns the service account that a token of this mesh speaks for.
func (m *Mesh) VerifyToken(token, audience string) (account, namespace string, err error) {
	return m.mint.verify(token, audience)
}

// RefuseTokens makes istiod refuse every token, or take them again.
// Certificates stay good.
func (m *Mesh) RefuseTokens(on bool) { m.refuseTokens.Store(on) }

// SetCertTTL changes the life of the certificates that are signed from now on.
func (m *Mesh) SetCertTTL(d time.Duration) { m.certTTL.Store(int64(d)) }

// Signed counts the certificates that clients were given.
func (m *Mesh) Signed() int64 { return m.signed.Load() }

// IssueSPIFFE makes a key pair for an identity, for another server or client
// of this mesh.
func (m *Mesh) IssueSPIFFE(id string, ttl time.Duration) (KeyPair, error) {
	c, err := m.authority.issue(names{uris: []string{id}}, ttl)
	if err != nil {
		return KeyPair{}, err
	}
	return m.authority.keyPair(c)
}

// IssueServer makes a certificate for a server known by DNS names and IP
// addresses, that the mesh's root vouches for.
func (m *Mesh) IssueServer(hosts ...string) (tls.Certificate, error) {
	var n names
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			n.ips = append(n.ips, ip)
		} else {
			n.dns = append(n.dns, h)
		}
	}
	c, err := m.authority.issue(n, defaultCertTTL)
	if err != nil {
		return tls.Certificate{}, err
	}
	return *c, nil
}

// Endpoints returns where the endpoints of a service port listen, in order.
func (m *Mesh) Endpoints(name, namespace string, port uint16) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.services[(&Service{Name: name, Namespace: namespace}).host()]
	if d == nil {
		return nil
	}
	var out []netip.AddrPort
	for _, where := range d.placed().where {
		if a, ok := where[port]; ok {
			out = append(out, a)
		}
	}
	return out
}

// VIPs returns the addresses of a service.
func (m *Mesh) VIPs(name, namespace string) []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.services[(&Service{Name: name, Namespace: namespace}).host()]; d != nil {
		return slices.Clone(d.VIPs)
	}
	return nil
}
