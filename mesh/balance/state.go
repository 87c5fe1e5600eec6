// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"slices"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const (
	// defaultOverprovisioning is Envoy's: endpoints are taken to bear 1.4
	// times their share, so that a priority keeps all the load until less
	// than 72 % of it is healthy.
	defaultOverprovisioning = 140
	defaultChoices          = 2
	// maxPriorities bounds what a control plane can make us allocate; Envoy
	// has the same bound in its validation of EDS.
	maxPriorities = 128
)

// A state is what Pick reads: immutable but for the cursors of its sources.
type state struct {
	endpoints *resource.Endpoints
	hosts     []*Host // all, in order of priority
	tiers     []tier  // by priority
	single    bool    // the first tier has all the load, and it is healthy
	available bool    // a healthy or degraded host exists
	rule      rule
}

// A rule is the policy with its parameters.
type rule struct {
	policy  resource.Policy
	choices int
	bias    float64 // exponent of the load under weights
}

// A tier is the hosts of one priority.
type tier struct {
	share
	all, healthy, degraded group
}

// A group is the hosts of one priority and one state of health, as a whole
// and, if localities are weighted, by locality.
type group struct {
	source     *source // nil: no host
	localities []slot
	total      float64
}

// A slot is a locality with the upper end of its range on [0, total).
type slot struct {
	upTo   float64
	source *source
}

func newRule(cfg resource.BalanceConfig) rule {
	r := rule{policy: cfg.Policy, choices: defaultChoices, bias: 1}
	if cfg.ChoiceCount > 0 {
		r.choices = int(cfg.ChoiceCount)
	}
	switch {
	case cfg.IgnoreLoad:
		r.bias = 0
	case cfg.ActiveBias > 0:
		r.bias = cfg.ActiveBias
	}
	return r
}

// A place is a locality with the hosts that are left of it after duplicates
// are dropped.
type place struct {
	priority int
	weight   uint32
	hosts    []*Host
}

func newState(cfg resource.BalanceConfig, e *resource.Endpoints, old *state) *state {
	s := &state{endpoints: e, rule: newRule(cfg)}
	places := s.gather(e, old)
	if len(places) == 0 {
		return s
	}
	factor := cmp.Or(e.Overprovisioning, cfg.Overprovisioning, defaultOverprovisioning)
	s.tiers = make([]tier, places[len(places)-1].priority+1)
	counts := make([]counts, len(s.tiers))
	for len(places) > 0 {
		p := places[0].priority
		n := 1
		for n < len(places) && places[n].priority == p {
			n++
		}
		counts[p] = s.tiers[p].fill(places[:n], s.rule, cfg.LocalityWeighted, factor)
		if old != nil && p < len(old.tiers) {
			s.tiers[p].resume(&old.tiers[p])
		}
		s.available = s.available || counts[p].healthy+counts[p].degraded > 0
		places = places[n:]
	}
	for i, sh := range spread(counts, factor, cfg.PanicThreshold) {
		s.tiers[i].share = sh
	}
	s.single = s.tiers[0].healthyLoad == 100 && !s.tiers[0].panic
	return s
}

// gather turns the localities into places with hosts, sorted by priority.
func (s *state) gather(e *resource.Endpoints, old *state) []place {
	_, total := e.Total()
	if total == 0 {
		return nil
	}
	reg := newRegistry(old, total)
	places := make([]place, 0, len(e.Localities))
	for i := range e.Localities {
		l := &e.Localities[i]
		if l.Priority >= maxPriorities {
			continue
		}
		hosts := make([]*Host, 0, len(l.Endpoints))
		for _, ep := range l.Endpoints {
			if h := reg.host(ep); h != nil {
				hosts = append(hosts, h)
			}
		}
		if len(hosts) > 0 {
			places = append(places, place{int(l.Priority), l.Weight, hosts})
		}
	}
	slices.SortStableFunc(places, func(a, b place) int { return a.priority - b.priority })
	if len(places) == 1 {
		s.hosts = places[0].hosts // the usual case needs no copy
		return places
	}
	for _, p := range places {
		s.hosts = append(s.hosts, p.hosts...)
	}
	return places
}

// fill sorts the hosts of one priority into its groups.
func (t *tier) fill(places []place, r rule, weighted bool, factor uint32) counts {
	var all, healthy, degraded []*Host
	for _, p := range places {
		h, d := sortOut(p.hosts)
		if weighted {
			t.healthy.add(h, len(p.hosts), p.weight, factor, r)
			t.degraded.add(d, len(p.hosts), p.weight, factor, r)
		}
		if len(places) == 1 {
			all, healthy, degraded = p.hosts, h, d
			break
		}
		all, healthy, degraded = append(all, p.hosts...), append(healthy, h...), append(degraded, d...)
	}
	t.all.source = newSource(all, r)
	t.healthy.source = t.all.source
	if len(healthy) != len(all) {
		t.healthy.source = newSource(healthy, r)
	}
	t.degraded.source = newSource(degraded, r)
	return counts{total: len(all), healthy: len(healthy), degraded: len(degraded)}
}

// sortOut splits hosts by health. When all are healthy it copies nothing.
func sortOut(hosts []*Host) (healthy, degraded []*Host) {
	all := true
	for _, h := range hosts {
		all = all && h.Endpoint.Health == resource.Healthy
	}
	if all {
		return hosts, nil
	}
	for _, h := range hosts {
		switch h.Endpoint.Health {
		case resource.Healthy:
			healthy = append(healthy, h)
		case resource.Degraded:
			degraded = append(degraded, h)
		}
	}
	return healthy, degraded
}

// add enters a locality with its effective weight: the configured one, less
// where too few of its hosts are eligible. A locality without a weight gets
// nothing, as Envoy has it.
func (g *group) add(hosts []*Host, of int, weight, factor uint32, r rule) {
	if len(hosts) == 0 || weight == 0 {
		return
	}
	health := min(1, float64(factor)/100*float64(len(hosts))/float64(of))
	g.total += float64(weight) * health
	g.localities = append(g.localities, slot{g.total, newSource(hosts, r)})
}

// resume goes on where the rotation of an earlier state was.
func (t *tier) resume(old *tier) {
	if t.healthy.source != nil && old.healthy.source != nil {
		t.healthy.source.cursor.Store(old.healthy.source.cursor.Load())
	}
}

// choose picks a host, or returns nil.
func (s *state) choose(r *rng) *Host {
	if s.single {
		return s.tiers[0].healthy.choose(r, s.rule)
	}
	if len(s.tiers) == 0 {
		return nil
	}
	t, healthy := s.draw(uint32(r.below(100)))
	switch {
	case t == nil:
		return nil
	case t.panic:
		return t.all.choose(r, s.rule)
	case healthy:
		return t.healthy.choose(r, s.rule)
	}
	return t.degraded.choose(r, s.rule)
}

// draw returns the tier at n of 100, and whether its healthy hosts are meant
// or its degraded ones.
func (s *state) draw(n uint32) (t *tier, healthy bool) {
	for i := range s.tiers {
		load := s.tiers[i].healthyLoad
		if n < load {
			return &s.tiers[i], true
		}
		n -= load
	}
	for i := range s.tiers {
		load := s.tiers[i].degradedLoad
		if n < load {
			return &s.tiers[i], false
		}
		n -= load
	}
	return nil, false
}

func (g *group) choose(r *rng, rule rule) *Host {
	src := g.source
	if len(g.localities) > 0 {
		at := r.float() * g.total
		src = g.localities[len(g.localities)-1].source
		for i := range g.localities {
			if at < g.localities[i].upTo {
				src = g.localities[i].source
				break
			}
		}
	}
	if src == nil {
		return nil
	}
	return src.choose(r, rule)
}
