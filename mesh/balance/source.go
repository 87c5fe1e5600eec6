// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A source is a set of hosts among which only the policy decides.
type source struct {
	hosts    []*Host
	weighted bool          // weights differ
	cursor   atomic.Uint64 // of the rotation

	once sync.Once // builds the schedule at its first use
	mu   sync.Mutex
	edf  schedule // guarded by mu
}

func newSource(hosts []*Host, r rule) *source {
	if len(hosts) == 0 {
		return nil
	}
	s := &source{hosts: hosts}
	if r.policy == resource.LeastRequest || r.policy == resource.RoundRobin {
		for _, h := range hosts {
			s.weighted = s.weighted || h.weight() != hosts[0].weight()
		}
	}
	// Every client would begin with the same host otherwise.
	s.cursor.Store(uint64(rand.Uint32()))
	return s
}

// choose applies the policy. RANDOM does not look at weights: nor does
// Envoy's.
func (s *source) choose(r *rng, rule rule) *Host {
	switch {
	case len(s.hosts) == 1:
		return s.hosts[0]
	case s.weighted:
		return s.next(r, rule)
	case rule.policy == resource.LeastRequest:
		return s.leastRequest(r, rule.choices)
	case rule.policy == resource.RoundRobin:
		return s.hosts[(s.cursor.Add(1)-1)%uint64(len(s.hosts))]
	}
	return s.hosts[r.below(uint64(len(s.hosts)))]
}

// leastRequest is the power of two (or more) choices: with replacement, and
// the first drawn wins a tie.
func (s *source) leastRequest(r *rng, choices int) *Host {
	var best *Host
	var least int64
	for range choices {
		h := s.hosts[r.below(uint64(len(s.hosts)))]
		if n := h.Active(); best == nil || n < least {
			best, least = h, n
		}
	}
	return best
}

// next takes the host whose turn it is by weight. Under LEAST_REQUEST the
// weight counts less the more is active.
func (s *source) next(r *rng, rule rule) *Host {
	s.once.Do(func() { s.build(r, rule) })
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hosts[s.edf.first()]
	s.edf.delay(1 / effective(h, rule))
	return h
}

// build makes the schedule and skips a random part of the first round, so
// that clients which learn of the hosts together do not pick alike.
func (s *source) build(r *rng, rule rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.edf = newSchedule(len(s.hosts), func(i int) float64 { return 1 / effective(s.hosts[i], rule) })
	for range r.below(uint64(len(s.hosts))) {
		s.edf.delay(1 / effective(s.hosts[s.edf.first()], rule))
	}
}

func effective(h *Host, rule rule) float64 {
	switch {
	case rule.policy != resource.LeastRequest || rule.bias == 0:
		return h.weight()
	case rule.bias == 1:
		return h.weight() / float64(max(h.Active(), 0)+1)
	}
	return h.weight() / math.Pow(float64(max(h.Active(), 0)+1), rule.bias)
}

// A schedule is a queue of indices by deadline: each comes as often as its
// period is short (earliest deadline first). It is a binary heap.
type schedule struct {
	heap []turn
	now  float64
	seq  uint64
}

type turn struct {
	deadline float64
	seq      uint64 // in order of arrival among equals
	index    int
}

func (a turn) before(b turn) bool {
	return a.deadline < b.deadline || a.deadline == b.deadline && a.seq < b.seq
}

func newSchedule(n int, period func(int) float64) schedule {
	s := schedule{heap: make([]turn, n), seq: uint64(n)}
	for i := range s.heap {
		s.heap[i] = turn{deadline: period(i), seq: uint64(i), index: i}
	}
	for i := n/2 - 1; i >= 0; i-- {
		s.down(i)
	}
	return s
}

func (s *schedule) first() int { return s.heap[0].index }

// delay puts the first one back by a period.
func (s *schedule) delay(period float64) {
	s.now = s.heap[0].deadline
	s.heap[0].deadline = s.now + period
	s.heap[0].seq = s.seq
	s.seq++
	s.down(0)
}

func (s *schedule) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(s.heap); child++ {
			if s.heap[child].before(s.heap[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		s.heap[i], s.heap[least] = s.heap[least], s.heap[i]
		i = least
	}
}

// An rng draws numbers from one seed: SplitMix64, enough to spread load.
type rng uint64

func newRNG(p *Pick) rng {
	if p == nil || p.Rand == 0 {
		return rng(rand.Uint64())
	}
	return rng(p.Rand)
}

func (r *rng) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below returns a number in [0, n).
func (r *rng) below(n uint64) uint64 {
	hi, _ := bits.Mul64(r.next(), n)
	return hi
}

// float returns a number in [0, 1).
func (r *rng) float() float64 { return float64(r.next()>>11) / (1 << 53) }
