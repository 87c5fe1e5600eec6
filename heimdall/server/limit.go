// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what clients may ask. Zero values have defaults.
type Limits struct {
	// SourceRate and SourceBurst hold for one source address, which may be
	// that of a gateway before all laptops: 50 a second, 200 at once.
	SourceRate  float64
	SourceBurst int
	// TokenRate and TokenBurst hold for one access token, which the laptops
	// of a group may share at their start: 2 a second, 40 at once.
	TokenRate  float64
	TokenBurst int
	// InFlight is how many requests are looked up at a time: 64. Each means up
	// to a dozen calls of the API server.
	InFlight int
}

const (
	// maxClients bounds each half of a table of buckets; half of it is
	// forgotten when the other is full. 10,000 buckets are 2 MB.
	maxClients = 10_000
	// ipv6Site is what one client can have addresses of.
	ipv6Site = 64
)

// A limiter decides who is let in.
type limiter struct {
	sources, tokens *buckets
	slots           chan struct{}
}

func newLimiter(l Limits) *limiter {
	return &limiter{
		sources: newBuckets(orElse(l.SourceRate, 50), orElse(l.SourceBurst, 200)),
		tokens:  newBuckets(orElse(l.TokenRate, 2), orElse(l.TokenBurst, 40)),
		slots:   make(chan struct{}, orElse(l.InFlight, 64)),
	}
}

func orElse[T int | float64](v, other T) T {
	if v > 0 {
		return v
	}
	return other
}

// admit returns the name of the limit that a request meets, or how to end it.
func (l *limiter) admit(source netip.Addr, token string) (release func(), limit string) {
	if source.Is6() {
		if p, err := source.WithZone("").Prefix(ipv6Site); err == nil {
			source = p.Addr()
		}
	}
	now := time.Now()
	// Tokens are not kept, not even here.
	sum := sha256.Sum256([]byte(token))
	switch {
	case !l.sources.allow(source.String(), now):
		return nil, "source"
	case !l.tokens.allow(string(sum[:]), now):
		return nil, "token"
	}
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots }, ""
	default:
		return nil, "in_flight"
	}
}

// buckets is a bounded table of token buckets. It has two halves: what is used
// moves into the young one, and when that is full it becomes the old one.
type buckets struct {
	rate  rate.Limit
	burst int

	mu         sync.Mutex
	young, old map[string]*rate.Limiter
}

func newBuckets(perSecond float64, burst int) *buckets {
	return &buckets{rate: rate.Limit(perSecond), burst: burst, young: make(map[string]*rate.Limiter)}
}

func (b *buckets) allow(key string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.young[key]
	if !ok {
		if l, ok = b.old[key]; !ok {
			l = rate.NewLimiter(b.rate, b.burst)
		}
		if len(b.young) >= maxClients {
			b.young, b.old = make(map[string]*rate.Limiter), b.young
		}
		b.young[key] = l
	}
	return l.AllowN(now, 1)
}
