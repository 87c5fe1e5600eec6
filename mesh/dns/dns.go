// SPDX-License-Identifier: Apache-2.0

// Package dns answers for the names of the mesh and hands on all other
// questions to the resolvers that the host would have asked.
//
// A name that the Snapshot knows is answered at once and completely: a type
// that it does not have (AAAA, HTTPS, TXT) gets an empty answer, since a client
// that is left without one waits for seconds. All else is forwarded unchanged,
// and before the first Snapshot everything is, so that a slow control plane
// does not take the names of the world away.
//
// Two answers are ours though the name is not the mesh's. A mesh name with a
// search domain of the host behind it does not exist: resolvers ask for it
// before, or in place of, the name itself. And use-application-dns.net does
// not exist either, by which Firefox knows to leave names to the system.
//
// [Server.Exchange] is the whole of it; the Serve methods put it behind
// captured flows and sockets. A [Forwarder] asks the host's resolvers.
package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"

	mdns "github.com/miekg/dns"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
)

const (
	// ttl of our answers, in seconds: addresses of headless services change
	// with their pods, and an answer costs nothing.
	ttl = 10
	// ourUDPSize is what we say that we take by UDP: the size that avoids
	// fragments on any path (DNS flag day 2020).
	ourUDPSize = 1232
	// maxForwards bounds the questions that wait for the host's resolvers.
	// Each holds a socket for up to five seconds; programs ask for a few
	// names at a time, and a loop must not eat all descriptors.
	maxForwards = 1024
	// canary is the name by which Firefox asks whether it may use DNS over
	// HTTPS by default, past every resolver of the system.
	canary = "use-application-dns.net"
)

// A Config says who knows what.
type Config struct {
	// Snapshot returns the mesh's names; nil before there are any.
	Snapshot func() *catalog.Snapshot
	// Forward asks the host's resolvers, by TCP if the client did.
	Forward func(ctx context.Context, q *mdns.Msg, tcp bool) (*mdns.Msg, error)
	// Search holds the search domains that clients append.
	Search []string
	// Local names come before those of the mesh. Lower case, no last dot.
	Local  map[string]netip.Addr
	Logger *slog.Logger
}

// A Server answers questions. It is safe for concurrent use.
type Server struct {
	// Set by New, then read-only.
	cfg    Config
	log    *slog.Logger
	search []string // "." + domain, lower case

	forwards chan struct{} // a place for each forwarded question

	stats stats
}

type stats struct {
	queries, answered, forwarded, failed, refused, malformed atomic.Uint64
}

// Stats counts questions by what became of them.
type Stats struct {
	Queries   uint64
	Answered  uint64 // by ourselves
	Forwarded uint64
	Failed    uint64 // forwarded in vain
	Refused   uint64 // too many at a time
	Malformed uint64 // no question at all, or one that cannot be read
}

// New returns a Server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, log: cfg.Logger, forwards: make(chan struct{}, maxForwards)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, d := range cfg.Search {
		if d = normal(d); d != "" {
			s.search = append(s.search, "."+d)
		}
	}
	return s
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Queries:   s.stats.queries.Load(),
		Answered:  s.stats.answered.Load(),
		Forwarded: s.stats.forwarded.Load(),
		Failed:    s.stats.failed.Load(),
		Refused:   s.stats.refused.Load(),
		Malformed: s.stats.malformed.Load(),
	}
}

// normal is the form in which names are compared.
func normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// resolve answers from what we know; ok is false for a question to forward.
func (s *Server) resolve(q mdns.Question) (rcode int, answer []mdns.RR, ok bool) {
	if q.Qclass != mdns.ClassINET {
		return 0, nil, false
	}
	name := normal(q.Name)
	if name == canary {
		return mdns.RcodeNameError, nil, true
	}
	snapshot := s.cfg.Snapshot()
	if v4, v6, ok := s.find(snapshot, name); ok {
		return mdns.RcodeSuccess, records(q, v4, v6), true
	}
	if s.isSearched(snapshot, name) {
		return mdns.RcodeNameError, nil, true
	}
	return 0, nil, false
}

// find returns the addresses of a name that is local or the mesh's. A name
// without any address is known to the mesh but not resolved by it, such as
// *.example.com: the world's DNS is asked. snapshot may be nil.
func (s *Server) find(snapshot *catalog.Snapshot, name string) (v4, v6 []netip.Addr, ok bool) {
	if a, ok := s.cfg.Local[name]; ok {
		if a = a.Unmap(); a.Is4() {
			return []netip.Addr{a}, nil, true
		}
		return nil, []netip.Addr{a}, true
	}
	if snapshot == nil {
		return nil, nil, false
	}
	h, ok := snapshot.Lookup(name)
	if !ok || len(h.V4)+len(h.V6) == 0 {
		return nil, nil, false
	}
	return h.V4, h.V6, true
}

// isSearched reports whether a name is one of ours with a search domain behind
// it. Bare names are left out: a service "www" in our namespace must not hide
// www.example.com where example.com is searched. There the resolver comes to
// the bare name by itself.
func (s *Server) isSearched(snapshot *catalog.Snapshot, name string) bool {
	for _, suffix := range s.search {
		stem, ok := strings.CutSuffix(name, suffix)
		if !ok || !strings.Contains(stem, ".") {
			continue
		}
		if _, _, known := s.find(snapshot, stem); known {
			return true
		}
	}
	return false
}
