// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"context"
	"errors"
	"sync"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The types that istiod serves and Envoy does not know.
const (
	nameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	addressType   = "type.googleapis.com/istio.workload.Address"
)

// pushOrder is istiod's: a client sees a cluster before its endpoints and both
// before the listeners and routes that lead to them.
var pushOrder = []string{
	resource.ClusterType, resource.EndpointType, resource.ListenerType,
	resource.RouteType, nameTableType, addressType,
}

// A NACK is a refusal that a client sent.
type NACK struct {
	TypeURL, Message string
}

// maxNACKs bounds what is remembered of a client that refuses everything.
const maxNACKs = 100

// adsServer takes delta streams. The protocol is go-control-plane's; what it
// says, and when, is a session's.
type adsServer struct {
	discoverypb.UnimplementedAggregatedDiscoveryServiceServer
	mesh *Mesh
}

// DeltaAggregatedResources serves one client.
func (s *adsServer) DeltaAggregatedResources(st discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c, err := s.mesh.authenticate(st.Context())
	if err != nil {
		return err
	}
	sess := &session{
		hub:     &s.mesh.hub,
		caller:  c,
		watches: map[string]*watch{},
		unacked: map[string]bool{},
		seen:    map[string]bool{},
	}
	s.mesh.hub.open(sess)
	defer s.mesh.hub.close(sess)
	return delta.NewServer(st.Context(), sess, sess).DeltaStreamHandler(st, resource.AnyType)
}

// A watch waits for something to say about one type to one client.
type watch struct {
	req *cache.DeltaRequest
	sub cache.Subscription
	out chan cache.DeltaResponse
}

// A session is one stream. It is what go-control-plane asks for resources
// (cache.ConfigWatcher) and what it tells of the stream (delta.Callbacks).
type session struct {
	hub    *hub
	caller caller

	// The rest is guarded by hub.mu.
	view    *view
	watches map[string]*watch
	unacked map[string]bool // types of which the last answer is not acknowledged
	seen    map[string]bool // types asked for at least once
}

var (
	_ cache.ConfigWatcher = (*session)(nil)
	_ delta.Callbacks     = (*session)(nil)
)

// errStateOfTheWorld refuses the older variant of the protocol.
var errStateOfTheWorld = errors.New("only delta ADS is served")

// CreateWatch implements cache.ConfigWatcher.
func (s *session) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errStateOfTheWorld
}

// CreateDeltaWatch implements cache.ConfigWatcher: it answers at once if there
// is something to say, else when there is.
func (s *session) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	typ := req.GetTypeUrl()
	if req.GetResponseNonce() != "" {
		delete(s.unacked, typ)
	}
	defer h.changed.Broadcast()
	w := &watch{req: req, sub: sub, out: out}
	// istiod answers the first request of each type on a stream even when it
	// has nothing to say, and so tells that there is nothing.
	always := !s.seen[typ]
	s.seen[typ] = true
	if s.answer(w, always) {
		return nil, nil
	}
	s.watches[typ] = w
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if s.watches[typ] == w {
			delete(s.watches, typ)
		}
	}, nil
}

// answer sends what the client does not have yet and reports whether there was
// anything. The channel has room: a stream has one open watch a type.
func (s *session) answer(w *watch, always bool) bool {
	typ := w.req.GetTypeUrl()
	resp := s.view.diff(typ, w.req.GetResourceNamesSubscribe(), w.sub)
	if len(resp.GetResources()) == 0 && len(resp.GetRemovedResources()) == 0 && !always {
		return false
	}
	next := map[string]string{}
	for name, version := range w.sub.ReturnedResources() {
		next[name] = version
	}
	for _, name := range resp.GetRemovedResources() {
		delete(next, name)
	}
	for _, r := range resp.GetResources() {
		next[r.GetName()] = s.view.types[typ][r.GetName()].version
	}
	resp.SystemVersionInfo = s.hub.version
	s.unacked[typ] = true
	w.out <- &cache.DeltaPassthroughResponse{DeltaRequest: w.req, NextVersionMap: next, DeltaDiscoveryResponse: resp}
	return true
}

// push answers the watches for which the view has news, in istiod's order.
func (s *session) push() {
	for _, typ := range pushOrder {
		if w := s.watches[typ]; w != nil && s.answer(w, false) {
			delete(s.watches, typ)
		}
	}
}

// OnDeltaStreamOpen implements delta.Callbacks.
func (s *session) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed implements delta.Callbacks.
func (s *session) OnDeltaStreamClosed(int64, *corepb.Node) {}

// OnStreamDeltaResponse implements delta.Callbacks.
func (s *session) OnStreamDeltaResponse(int64, *discoverypb.DeltaDiscoveryRequest, *discoverypb.DeltaDiscoveryResponse) {
}

// OnStreamDeltaRequest implements delta.Callbacks: it judges the first message
// and notes refusals.
func (s *session) OnStreamDeltaRequest(_ int64, req *discoverypb.DeltaDiscoveryRequest) error {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.view == nil {
		n, err := parseNode(req.GetNode())
		if err != nil {
			return err
		}
		if err := n.check(s.caller); err != nil {
			return err
		}
		s.view = h.viewFor(n.dnsNamespace)
		h.changed.Broadcast()
	}
	if e := req.GetErrorDetail(); e != nil && len(h.nacks) < maxNACKs {
		h.nacks = append(h.nacks, NACK{TypeURL: req.GetTypeUrl(), Message: e.GetMessage()})
	}
	return nil
}

// A hub joins the sessions with the views that they see.
type hub struct {
	mu       sync.Mutex
	changed  *sync.Cond // on mu: sessions came, went, or acknowledged
	build    func(dnsNamespace string) *view
	views    map[string]*view // by namespace of the client
	sessions map[*session]bool
	version  string
	nacks    []NACK
}

// viewFor returns what clients of a namespace see; mu is held.
func (h *hub) viewFor(dnsNamespace string) *view {
	v := h.views[dnsNamespace]
	if v == nil {
		v = h.build(dnsNamespace)
		h.views[dnsNamespace] = v
	}
	return v
}

func (h *hub) open(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[s] = true
	h.changed.Broadcast()
}

func (h *hub) close(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, s)
	h.changed.Broadcast()
}

// publish builds the views anew and pushes what has changed.
func (h *hub) publish(version string, build func(dnsNamespace string) *view) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.version, h.build = version, build
	for ns, v := range h.views {
		v.types = build(ns).types
	}
	for s := range h.sessions {
		if s.view != nil {
			s.push()
		}
	}
}

// synced reports whether n clients are there and all of them have asked for
// everything that concerns them and acknowledged what they were sent.
func (h *hub) synced(n int) bool {
	for s := range h.sessions {
		if s.view == nil || len(s.unacked) > 0 || !s.seen[resource.ClusterType] || !s.seen[resource.ListenerType] ||
			!s.covers(resource.EndpointType) || !s.covers(resource.RouteType) {
			return false
		}
	}
	return len(h.sessions) >= n
}

// covers reports whether the client wants every resource of a type that is
// asked for by name. After a new cluster it takes a client one more request to
// ask for its endpoints.
func (s *session) covers(typ string) bool {
	names := s.view.types[typ]
	w := s.watches[typ]
	if len(names) == 0 || w != nil && w.sub.IsWildcard() {
		return true
	}
	for name := range names {
		if w == nil {
			return false
		}
		if _, ok := w.sub.SubscribedResources()[name]; !ok {
			return false
		}
	}
	return true
}

// errNoNode is istiod's word for a first message that does not say who speaks.
var errNoNode = status.Error(codes.InvalidArgument, "ADS: missing node information")
