// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"context"
	"sync"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// A lifeline is what others cut to end an exchange early: the client that
// resets, a timer, the end of the program. Dials and HTTP/2 streams end by
// their context; an HTTP/1 connection knows none and is aborted.
type lifeline struct {
	mu     sync.Mutex
	over   bool // the exchange has ended: nothing is left to cut
	cause  error
	h1     *upstream.H1
	cancel context.CancelCauseFunc // of the exchange's context; may be nil
	try    context.CancelFunc      // of the attempt's; may be nil
	timer  *time.Timer
}

// cut ends the exchange, and reports false if that had ended already. The
// first cause counts, but that of a mere try gives way.
//
// The connection is aborted under the lock, so that it cannot have gone back
// to its pool meanwhile; Abort does not block.
func (l *lifeline) cut(cause error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	if l.cause == nil || l.cause == errTryTimeout {
		l.cause = cause
	}
	if l.cancel != nil && cause != errTryTimeout {
		l.cancel(cause)
	}
	if l.try != nil {
		l.try()
	}
	if l.h1 != nil {
		l.h1.Abort()
	}
	return true
}

// context returns a context that ends with the exchange.
func (l *lifeline) context(parent context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancel = cancel
	if l.cause != nil {
		cancel(l.cause)
	}
	return ctx
}

// begin puts an attempt on the line, and forgets the time-out of an earlier
// one. cancel may be nil.
func (l *lifeline) begin(cancel context.CancelFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == errTryTimeout {
		l.cause = nil
	}
	l.try = cancel
}

// hold puts the attempt's connection on the line. It reports false if the line
// was cut.
func (l *lifeline) hold(h *upstream.H1) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return false
	}
	l.h1 = h
	return true
}

// letGo takes the attempt off the line.
func (l *lifeline) letGo() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h1, l.try = nil, nil
}

// start takes over a timer, which ends with the exchange.
func (l *lifeline) start(t *time.Timer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		t.Stop()
		return
	}
	l.timer = t
}

// why returns what the exchange was cut off for, nil if it was not.
func (l *lifeline) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// stopped reports whether the exchange, and not a mere try, was cut off.
func (l *lifeline) stopped() bool {
	why := l.why()
	return why != nil && why != errTryTimeout
}

// end closes the line and returns what it was cut for.
func (l *lifeline) end() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.timer != nil {
		l.timer.Stop()
	}
	if l.cancel != nil {
		l.cancel(context.Canceled)
	}
	return l.cause
}
