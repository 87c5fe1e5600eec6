// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"math/rand/v2"
	"time"
)

const (
	// The delays between attempts, as ztunnel has them: short enough that the
	// restart of a control plane is hardly seen, long enough that a fleet
	// does not keep one from starting.
	backoffMin = 10 * time.Millisecond
	backoffMax = 15 * time.Second
	// steadyAge is how long a stream must have lived, having delivered, to be
	// replaced at once. It bounds the rate at which a server that answers and
	// then fails is asked for everything again.
	steadyAge = 2 * time.Second
)

// A backoff says how long to wait before the next stream. The zero value is
// ready for use.
type backoff struct {
	last time.Duration
}

// steady reports whether a stream that delivered and ended after age was a
// working one, whose end is no failure. It must have outlived the delay that
// came before it, so that a server that keeps failing is asked ever less.
func (b *backoff) steady(delivered bool, age time.Duration) bool {
	return delivered && age >= max(steadyAge, b.last)
}

// reset begins again, after a working stream.
func (b *backoff) reset() { b.last = 0 }

// next returns the delay after a failure: twice the one before, less up to
// half of it by chance, so that clients that failed together come back apart.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	return b.last/2 + rand.N(b.last/2)
}
