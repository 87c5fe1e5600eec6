// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"maps"
	"slices"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

const (
	// maxRequestNames bounds the names and versions in one request. istiod
	// refuses messages over 4 MiB (ISTIO_GPRC_MAXRECVMSGSIZE) and closes the
	// stream with them; the rest is for the node and the framing.
	maxRequestNames = 3 << 20
	// nameOverhead is what a name costs in a request beyond its own bytes:
	// two tags and lengths, and those of the map entry.
	nameOverhead = 16
)

// A subscription is the state of one type. Client.mu guards it.
type subscription struct {
	Type

	// What is wanted and what has arrived, on whichever stream.
	wanted     map[string]struct{} // names given to Watch
	held       map[string]string   // name -> version, of what the Sink applied
	rejected   map[string]string   // name -> error, of what it did not
	lastUpdate time.Time

	// Of the current stream.
	asked    bool                // the first request has been made
	answered bool                // the first response has come
	resumed  bool                // the first request said what is held
	sent     map[string]struct{} // names subscribed to
	drop     map[string]struct{} // names to unsubscribe from, even if wanted again
}

func newSubscription(t Type) *subscription {
	return &subscription{
		Type:     t,
		wanted:   map[string]struct{}{},
		held:     map[string]string{},
		rejected: map[string]string{},
		sent:     map[string]struct{}{},
		drop:     map[string]struct{}{},
	}
}

// restart forgets what belonged to the stream before.
func (s *subscription) restart() {
	s.asked, s.answered, s.resumed = false, false, false
	clear(s.sent)
	clear(s.drop)
}

// watch replaces the set of wanted names. A name that is dropped and wanted
// again before its unsubscription was sent must still be unsubscribed: the
// holder has let go of the resource, and the server would not send again what
// it believes to be here.
func (s *subscription) watch(names []string) {
	wanted := make(map[string]struct{}, len(names))
	for _, n := range names {
		wanted[n] = struct{}{}
	}
	for n := range s.wanted {
		if _, ok := wanted[n]; ok {
			continue
		}
		delete(s.held, n)
		delete(s.rejected, n)
		if _, ok := s.sent[n]; ok {
			s.drop[n] = struct{}{}
		}
	}
	s.wanted = wanted
}

// next returns the request that brings the server's view of the subscription
// up to date, or nil when it is. Called again it returns the one after that.
func (s *subscription) next() *discoverypb.DeltaDiscoveryRequest {
	if s.Wildcard {
		return s.askAll()
	}
	return s.askNames()
}

func (s *subscription) askAll() *discoverypb.DeltaDiscoveryRequest {
	if s.asked {
		return nil
	}
	s.asked = true
	r := &discoverypb.DeltaDiscoveryRequest{TypeUrl: s.URL}
	// All names go, even those without a version (istiod gives Envoy's types
	// none): the server computes removals from them. If they do not fit, it
	// sends everything, and the removals are computed here; see missing.
	if len(s.held) > 0 && s.heldSize() <= maxRequestNames {
		s.resumed = true
		r.InitialResourceVersions = maps.Clone(s.held)
	}
	return r
}

func (s *subscription) heldSize() (n int) {
	for name, version := range s.held {
		n += len(name) + len(version) + nameOverhead
	}
	return n
}

func (s *subscription) askNames() *discoverypb.DeltaDiscoveryRequest {
	r := &discoverypb.DeltaDiscoveryRequest{TypeUrl: s.URL}
	first, budget := !s.asked, maxRequestNames
	again := false // a dropped name is wanted again: its subscription goes in a later request
	for _, n := range slices.Sorted(maps.Keys(s.drop)) {
		if budget -= len(n) + nameOverhead; budget < 0 {
			break
		}
		r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, n)
		delete(s.drop, n)
		delete(s.sent, n)
		_, wanted := s.wanted[n]
		again = again || wanted
	}
	if !again {
		s.addNames(r, budget, first)
	}
	if len(r.ResourceNamesSubscribe) == 0 && len(r.ResourceNamesUnsubscribe) == 0 {
		return nil
	}
	s.asked = true
	return r
}

// addNames subscribes to the names that are wanted and not yet subscribed to.
// On the first request of a stream it tells the versions held, where there is
// one: without a version the server has nothing to compare.
func (s *subscription) addNames(r *discoverypb.DeltaDiscoveryRequest, budget int, first bool) {
	var names []string
	for n := range s.wanted {
		if _, ok := s.sent[n]; !ok {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		version := s.held[n]
		if !first {
			version = ""
		}
		size := len(n) + nameOverhead
		if version != "" {
			size += len(n) + len(version) + nameOverhead
		}
		if budget -= size; budget < 0 {
			return
		}
		r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
		s.sent[n] = struct{}{}
		if version != "" {
			if r.InitialResourceVersions == nil {
				r.InitialResourceVersions = map[string]string{}
			}
			r.InitialResourceVersions[n] = version
		}
	}
}

// missing returns what is held and not in r, if r is known to be everything
// that there is: the first answer to a wildcard that did not say what is held.
func (s *subscription) missing(r *discoverypb.DeltaDiscoveryResponse) []string {
	if !s.Wildcard || s.answered || s.resumed || len(s.held) == 0 {
		return nil
	}
	gone := maps.Clone(s.held)
	for _, res := range r.GetResources() {
		delete(gone, res.GetName())
	}
	for _, n := range r.GetRemovedResources() {
		delete(gone, n)
	}
	return slices.Sorted(maps.Keys(gone))
}

// applied records what a response left in place. It returns the names that
// are rejected and were not before, or for another reason.
func (s *subscription) applied(r Response, bad map[string]string) (news []string) {
	for name, why := range bad {
		if s.rejected[name] != why && s.wants(name) {
			news = append(news, name)
			s.rejected[name] = why
		}
	}
	for _, res := range r.Resources {
		if _, ok := bad[res.Name]; ok {
			continue // and the version held stays the one applied before
		}
		delete(s.rejected, res.Name)
		// The empty name is that of a singleton, which is always sent anew.
		if res.Name != "" && s.wants(res.Name) {
			s.held[res.Name] = res.Version
		}
	}
	for _, n := range r.Removed {
		delete(s.held, n)
		delete(s.rejected, n)
	}
	s.answered = true
	s.lastUpdate = time.Now()
	slices.Sort(news)
	return news
}

// wants reports whether a resource of this name is asked for. One that no
// longer is may still arrive; the holder does not keep it.
func (s *subscription) wants(name string) bool {
	_, ok := s.wanted[name]
	return ok || s.Wildcard
}
