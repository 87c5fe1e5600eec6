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
	// maxName bounds one name; those of istiod are host names with a prefix.
	maxName = 4 << 10
	// nameOverhead is what a name costs in a request beyond its own bytes:
	// two tags and lengths, and those of the map entry.
	nameOverhead = 16
)

// A subscription is the state of one type. Client.mu guards it.
type subscription struct {
	Type

	// What is wanted and what has arrived, on whichever stream.
	names      []string            // as given to Watch last
	wanted     map[string]struct{} // the same, as a set
	held       map[string]string   // name -> version, of what the Sink applied
	rejected   map[string]string   // name -> error, of what it did not
	lastUpdate time.Time

	// Of the current stream.
	asked    bool                // the first request has been made
	answered bool                // the first response has come
	resumed  bool                // the first request said what is held
	sent     map[string]struct{} // names subscribed to
	add      map[string]struct{} // names to subscribe to
	drop     map[string]struct{} // names to unsubscribe from, even if wanted again
}

func newSubscription(t Type) *subscription {
	return &subscription{
		Type:     t,
		wanted:   map[string]struct{}{},
		held:     map[string]string{},
		rejected: map[string]string{},
		sent:     map[string]struct{}{},
		add:      map[string]struct{}{},
		drop:     map[string]struct{}{},
	}
}

// restart forgets what belonged to the stream before.
func (s *subscription) restart() {
	s.asked, s.answered, s.resumed = false, false, false
	clear(s.sent)
	clear(s.drop)
	s.add = maps.Clone(s.wanted)
}

// watch replaces the set of wanted names. A name that is dropped and wanted
// again before its unsubscription was sent must still be unsubscribed: the
// holder has let go of the resource, and the server would not send again what
// it believes to be here.
func (s *subscription) watch(names []string) {
	if slices.Equal(names, s.names) {
		return
	}
	s.names = slices.Clone(names)
	wanted := make(map[string]struct{}, len(names))
	for _, n := range names {
		if !askable(n) {
			continue
		}
		wanted[n] = struct{}{}
		if !s.wants(n) {
			s.add[n] = struct{}{}
		}
	}
	for n := range s.wanted {
		if _, ok := wanted[n]; ok {
			continue
		}
		delete(s.held, n)
		delete(s.rejected, n)
		delete(s.add, n)
		if _, ok := s.sent[n]; ok {
			s.drop[n] = struct{}{}
		}
	}
	s.wanted = wanted
}

// askable reports whether a name can be asked for: "*" would ask for
// everything, and one that fills a request is no name.
func askable(name string) bool {
	return name != "" && name != "*" && len(name) <= maxName
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
	if len(s.add) == 0 && len(s.drop) == 0 {
		return nil
	}
	r := &discoverypb.DeltaDiscoveryRequest{TypeUrl: s.URL}
	first, budget := !s.asked, maxRequestNames
	s.asked = true
	again := false // a dropped name is wanted again: its subscription goes in a later request
	for _, n := range slices.Sorted(maps.Keys(s.drop)) {
		if budget -= len(n) + nameOverhead; budget < 0 {
			return r
		}
		r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, n)
		delete(s.drop, n)
		delete(s.sent, n)
		_, wanted := s.add[n]
		again = again || wanted
	}
	if !again {
		s.addNames(r, budget, first)
	}
	return r
}

// addNames subscribes to the names that are wanted and not yet subscribed to.
// On the first request of a stream it tells the versions held, where there is
// one: without a version the server has nothing to compare.
func (s *subscription) addNames(r *discoverypb.DeltaDiscoveryRequest, budget int, first bool) {
	for _, n := range slices.Sorted(maps.Keys(s.add)) {
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
		delete(s.add, n)
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
	if !s.answered {
		// What was rejected is not held in that version, so a server that
		// still has it sends it again in its first answer.
		maps.DeleteFunc(s.rejected, func(name, _ string) bool { _, ok := bad[name]; return !ok })
	}
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
