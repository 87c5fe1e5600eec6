// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
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
	injected map[string]map[string]*anypb.Any

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
		injected: map[string]map[string]*anypb.Any{},
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
	// The views of new clients are built later, without m.mu.
	w.injected = map[string]map[string]*anypb.Any{}
	for typ, set := range m.injected {
		w.injected[typ] = maps.Clone(set)
	}
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

// Inject puts a resource of any content in place of the mesh's own of that type
// and name, or beside them; nil takes it away. It is how a client is tried with
// what this package would never send.
func (m *Mesh) Inject(typeURL, name string, body *anypb.Any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.injected[typeURL] == nil {
		m.injected[typeURL] = map[string]*anypb.Any{}
	}
	if body == nil {
		delete(m.injected[typeURL], name)
	} else {
		m.injected[typeURL][name] = body
	}
	m.publishLocked()
}

// WaitSynced waits until at least n clients are connected and all of them have
// subscribed to everything and acknowledged what they were sent.
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
