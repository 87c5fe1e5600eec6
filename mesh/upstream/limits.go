// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"
	"sync"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// limits are the circuit breakers of one cluster: Envoy's max_connections,
// max_pending_requests and max_requests of the default priority. A limit of 0
// is none, as is istiod's default of MaxUint32.
type limits struct {
	mu       sync.Mutex
	conns    uint32
	requests uint32
	waiting  []chan struct{} // one per exchange that waits for a connection
}

// limitsOf returns the limits of a cluster. They are few and small, and live
// as long as the Manager: a cluster that comes back finds its load.
func (m *Manager) limitsOf(c *resource.Cluster) *limits {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.limitsLocked(c.Name)
}

func (m *Manager) limitsLocked(cluster string) *limits {
	l := m.limits[cluster]
	if l == nil {
		l = new(limits)
		m.limits[cluster] = l
	}
	return l
}

func (l *limits) takeConn(most uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most != 0 && l.conns >= most {
		return false
	}
	l.conns++
	return true
}

func (l *limits) freeConn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns--
	l.wakeLocked()
}

func (l *limits) takeRequest(most uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most != 0 && l.requests >= most {
		return false
	}
	l.requests++
	return true
}

func (l *limits) freeRequest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests--
}

// wake lets the exchange that has waited longest try again, because a
// connection came back to its pool.
func (l *limits) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeLocked()
}

func (l *limits) wakeLocked() {
	if len(l.waiting) > 0 {
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
	}
}

// enqueue puts the caller into the queue for a connection, or returns nil if
// that is full. What is freed from now on closes the channel; what was freed
// just before is the caller's to look for once more.
func (l *limits) enqueue(most uint32) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most != 0 && uint32(len(l.waiting)) >= most {
		return nil
	}
	ch := make(chan struct{})
	l.waiting = append(l.waiting, ch)
	return ch
}

// leave takes a waiter out of the queue. One that was woken meanwhile passes
// its turn on.
func (l *limits) leave(ch chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == ch {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return
		}
	}
	l.wakeLocked()
}

func overload(c *resource.Cluster, breaker string, limit uint32) error {
	return &Error{Reason: ReasonOverload, Err: fmt.Errorf("connect %s: circuit breaker %s of %d is open", c.Name, breaker, limit)}
}
