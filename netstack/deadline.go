// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"sync"
	"sync/atomic"
	"time"
)

// A deadline wakes one side of a connection at a point in time. It costs
// nothing until it is set, and its timer is used again when it is set anew.
type deadline struct {
	wake chan struct{} // of the side; capacity 1

	mu    sync.Mutex
	at    time.Time   // guarded by mu
	timer *time.Timer // guarded by mu

	passed atomic.Bool
}

// set moves the deadline; the zero time takes it away.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	left := time.Until(t)
	d.passed.Store(!t.IsZero() && left <= 0)
	switch {
	case t.IsZero():
		d.stopLocked()
	case left <= 0:
		d.stopLocked()
		signal(d.wake)
	case d.timer == nil:
		d.timer = time.AfterFunc(left, d.fire)
	default:
		d.timer.Reset(left)
	}
}

// fire may come late, after the deadline was moved or taken away.
func (d *deadline) fire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at.IsZero() {
		return
	}
	if left := time.Until(d.at); left > 0 {
		d.timer.Reset(left)
		return
	}
	d.passed.Store(true)
	signal(d.wake)
}

func (d *deadline) stop() { d.set(time.Time{}) }

func (d *deadline) stopLocked() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

// signal leaves a token for the side that waits or will wait.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
