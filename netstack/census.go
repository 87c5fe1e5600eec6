// SPDX-License-Identifier: Apache-2.0

package netstack

import "sync"

// A census counts the flows that have a handler, and tells when the last has
// ended after new ones are no longer admitted.
type census struct {
	wg sync.WaitGroup

	mu       sync.Mutex
	n        int           // guarded by mu
	draining bool          // guarded by mu
	idle     chan struct{} // closed once draining and empty
}

func newCensus() *census { return &census{idle: make(chan struct{})} }

// enter admits a flow. The goroutine that serves it calls leave.
func (c *census) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return false
	}
	c.n++
	c.wg.Add(1)
	return true
}

func (c *census) leave() {
	defer c.wg.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n--
	if c.draining && c.n == 0 {
		close(c.idle)
	}
}

// drain admits no more flows, and returns a channel that is closed when none
// is left.
func (c *census) drain() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.draining = true
		if c.n == 0 {
			close(c.idle)
		}
	}
	return c.idle
}

func (c *census) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// wait joins the goroutines of flows that have left.
func (c *census) wait() { c.wg.Wait() }
