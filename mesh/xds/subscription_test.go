// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
)

// drain returns all that a subscription has to say now.
func drain(s *subscription) (all []*discoverypb.DeltaDiscoveryRequest) {
	for r := s.next(); r != nil; r = s.next() {
		all = append(all, r)
	}
	return all
}

// Names come from the server's own resources, and must not make a wildcard.
func TestNamesThatAreNone(t *testing.T) {
	s := newSubscription(Type{URL: EndpointType})
	s.watch([]string{"*", "", strings.Repeat("n", maxRequestNames)})
	if got := drain(s); len(got) != 0 {
		t.Errorf("%d requests", len(got))
	}
}

// A cluster that goes and comes back between two requests has lost its
// endpoints here, while the server believes that they are held. Asking again
// takes two messages: a name both added and taken away in one is taken away.
func TestNameDroppedAndWantedAgain(t *testing.T) {
	s := newSubscription(Type{URL: EndpointType})
	s.watch([]string{"a", "b"})
	drain(s)
	s.watch([]string{"b"})
	s.watch([]string{"a", "b", "c"})
	got := drain(s)
	if len(got) != 2 ||
		!slices.Equal(got[0].GetResourceNamesUnsubscribe(), []string{"a"}) || len(got[0].GetResourceNamesSubscribe()) != 0 ||
		!slices.Equal(got[1].GetResourceNamesSubscribe(), []string{"a", "c"}) || len(got[1].GetResourceNamesUnsubscribe()) != 0 {
		t.Errorf("requests %v, want -a and then +a +c", got)
	}
}

// What is applied for a name that is no longer wanted is not held: the sink
// did not keep it, and the next stream must not claim it.
func TestLateResource(t *testing.T) {
	s := newSubscription(Type{URL: EndpointType})
	s.watch([]string{"a"})
	drain(s)
	s.watch(nil)
	drain(s)
	s.applied(Response{Resources: []Resource{{Name: "a", Version: "1"}}}, nil)
	s.restart()
	s.watch([]string{"a"})
	if r := s.next(); len(r.GetInitialResourceVersions()) != 0 {
		t.Errorf("claims to hold %v", r.GetInitialResourceVersions())
	}
}

// A rejected version is not claimed, the one before it is.
func TestRejectedVersionIsNotHeld(t *testing.T) {
	s := newSubscription(Type{URL: ClusterType, Wildcard: true})
	s.applied(Response{Resources: []Resource{{Name: "a", Version: "1"}, {Name: "b", Version: "1"}}}, map[string]string{"b": "no"})
	s.applied(Response{Resources: []Resource{{Name: "a", Version: "2"}}}, map[string]string{"a": "no"})
	s.restart()
	if got := s.next().GetInitialResourceVersions(); len(got) != 1 || got["a"] != "1" {
		t.Errorf("held %v, want a at 1", got)
	}
	// What was rejected and is not sent again by a new stream is gone.
	if news := s.applied(Response{Resources: []Resource{{Name: "a", Version: "2"}}}, map[string]string{"a": "no"}); len(news) != 0 {
		t.Errorf("news %v, want none: the same was said before", news)
	}
	if len(s.rejected) != 1 {
		t.Errorf("rejected %v, want a alone", s.rejected)
	}
}

// No request may come near the 4 MiB that istiod accepts.
func TestRequestsAreBounded(t *testing.T) {
	const server = 4 << 20
	s := newSubscription(Type{URL: EndpointType})
	var names []string
	for i := range 10_000 {
		names = append(names, fmt.Sprintf("outbound|80||service-%d.%s.svc.cluster.local", i, strings.Repeat("n", 1000)))
	}
	s.watch(names)
	check := func(what string, want int, pick func(*discoverypb.DeltaDiscoveryRequest) []string) {
		t.Helper()
		seen := map[string]bool{}
		for i, r := range drain(s) {
			if n := proto.Size(r); n > server-64<<10 {
				t.Errorf("%s: request of %d bytes", what, n)
			}
			if i > 0 && len(r.GetInitialResourceVersions()) > 0 {
				t.Errorf("%s: versions after the first request of a stream", what)
			}
			if len(pick(r)) == 0 {
				t.Errorf("%s: request without names", what)
			}
			for _, n := range pick(r) {
				seen[n] = true
			}
		}
		if len(seen) != want {
			t.Errorf("%s: %d names, want %d", what, len(seen), want)
		}
	}
	check("subscribe", len(names), (*discoverypb.DeltaDiscoveryRequest).GetResourceNamesSubscribe)
	var all Response
	for _, n := range names {
		all.Resources = append(all.Resources, Resource{Name: n, Version: "0123456789abcdef"})
	}
	s.applied(all, nil)
	s.restart()
	check("resume", len(names), (*discoverypb.DeltaDiscoveryRequest).GetResourceNamesSubscribe)
	s.watch(nil)
	check("unsubscribe", len(names), (*discoverypb.DeltaDiscoveryRequest).GetResourceNamesUnsubscribe)
}

// Where what is held does not fit, the server sends everything, and what is
// not in it is gone.
func TestRemovalsWithoutVersions(t *testing.T) {
	s := newSubscription(Type{URL: AddressType, Wildcard: true})
	var all Response
	for i := range 5_000 {
		all.Resources = append(all.Resources, Resource{Name: fmt.Sprintf("%d/%s", i, strings.Repeat("u", 800)), Version: "0123456789abcdef"})
	}
	s.applied(all, nil)
	s.restart()
	if r := s.next(); len(r.GetInitialResourceVersions()) != 0 {
		t.Fatalf("request of %d bytes", proto.Size(r))
	}
	kept := &discoverypb.DeltaDiscoveryResponse{}
	for _, res := range all.Resources[2:] {
		kept.Resources = append(kept.Resources, &discoverypb.Resource{Name: res.Name})
	}
	want := []string{all.Resources[0].Name, all.Resources[1].Name}
	slices.Sort(want)
	if got := s.missing(kept); !slices.Equal(got, want) {
		t.Errorf("missing %v, want %v", got, want)
	}
	s.applied(Response{}, nil)
	if got := s.missing(&discoverypb.DeltaDiscoveryResponse{}); got != nil {
		t.Errorf("a later response, which is a difference, removes %d", len(got))
	}
}

func TestErrorDetailIsBounded(t *testing.T) {
	var rejected []Rejected
	for i := range 10_000 {
		rejected = append(rejected, Rejected{Name: fmt.Sprint(i), Err: fmt.Errorf("bad \xff %s", strings.Repeat("x", 100))})
	}
	a := answer(&discoverypb.DeltaDiscoveryResponse{Nonce: "1"}, rejected)
	text := a.GetErrorDetail().GetMessage()
	if len(text) > maxErrorDetail+100 || !strings.Contains(text, "more") {
		t.Errorf("%d bytes: %.80s", len(text), text)
	}
	if _, err := proto.Marshal(a); err != nil {
		t.Error(err)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	for want := backoffMin; want < 2*backoffMax; want *= 2 {
		full := min(want, backoffMax)
		if got := b.next(); got < full/2 || got > full {
			t.Errorf("delay %v, want %v to %v", got, full/2, full)
		}
	}
	if b.steady(true, backoffMax-time.Second) {
		t.Error("a stream that lived less than the delay before it counts as steady")
	}
	if b.steady(false, time.Hour) {
		t.Error("a stream that delivered nothing counts as steady")
	}
	if !b.steady(true, backoffMax) {
		t.Error("a stream that delivered and lived does not count as steady")
	}
	b.reset()
	if got := b.next(); got > backoffMin {
		t.Errorf("delay %v after a reset", got)
	}
	if b.steady(true, steadyAge-1) {
		t.Error("a short stream counts as steady")
	}
}

// The same names again, among very many, is the common case of an update.
func BenchmarkWatch(b *testing.B) {
	s := newSubscription(Type{URL: EndpointType})
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("outbound|80||service-%d.testing.svc.cluster.local", i)
	}
	s.watch(names)
	drain(s)
	for b.Loop() {
		s.watch(names)
		if s.next() != nil {
			b.Fatal("a request for nothing")
		}
	}
}
