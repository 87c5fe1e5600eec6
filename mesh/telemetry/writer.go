// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the access log's buffer.
const (
	// maxBuffered is how much may wait for the writer: some 3,000 records.
	maxBuffered = 1 << 20
	// fullBuffer wakes the writer before flushDelay is over.
	fullBuffer = 64 << 10
	// flushDelay lets records gather for one write; short enough for someone
	// who watches the file.
	flushDelay = 100 * time.Millisecond
)

// An accessLog buffers lines and writes them from Run.
type accessLog struct {
	w       io.Writer
	format  format
	log     *slog.Logger
	dropped prometheus.Counter
	wake    chan struct{} // never closed; holds one: something waits
	full    chan struct{} // never closed; holds one: do not wait longer

	mu sync.Mutex
	// +checklocks:mu
	buf []byte
	// records counts those in buf.
	// +checklocks:mu
	records int
	// ended tells that Run has: who adds a line then writes it too.
	// +checklocks:mu
	ended bool

	// writing is held while lines are written, before mu. It guards what
	// only the writer needs.
	writing sync.Mutex
	// spare is the buffer to swap in.
	// +checklocks:writing
	spare []byte
	// failing tells that the last write failed.
	// +checklocks:writing
	failing bool
}

func newAccessLog(w io.Writer, f format, log *slog.Logger, dropped prometheus.Counter) *accessLog {
	return &accessLog{
		w: w, format: f, log: log, dropped: dropped,
		wake: make(chan struct{}, 1), full: make(chan struct{}, 1),
	}
}

// write appends the line of r, or drops and counts it.
func (a *accessLog) write(r *Record) {
	a.mu.Lock()
	if len(a.buf) >= maxBuffered {
		a.mu.Unlock()
		a.dropped.Inc()
		return
	}
	first := len(a.buf) == 0
	a.buf = appendRecord(a.buf, a.format, r, time.Now().UTC())
	a.records++
	full, ended := len(a.buf) >= fullBuffer, a.ended
	a.mu.Unlock()
	if ended {
		a.flush()
		return
	}
	if first {
		signal(a.wake)
	}
	if full {
		signal(a.full)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Flush writes the access records that wait.
func (t *Telemetry) Flush() {
	if t.access != nil {
		t.access.flush()
	}
}

// Run writes access records until ctx ends, and then those that are left. What
// is recorded later, while the last flows are cut, is written at once.
func (t *Telemetry) Run(ctx context.Context) error {
	if t.access == nil {
		<-ctx.Done()
		return nil
	}
	t.access.run(ctx)
	return nil
}

func (a *accessLog) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-a.wake:
		}
		timer.Reset(flushDelay)
		select {
		case <-ctx.Done():
		case <-a.full:
		case <-timer.C:
		}
		a.flush()
	}
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	a.flush()
}

func (a *accessLog) flush() {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.mu.Lock()
	out, n := a.buf, a.records
	a.buf, a.records = a.spare[:0], 0
	a.mu.Unlock()
	a.spare = out
	if n == 0 {
		return
	}
	_, err := a.w.Write(out)
	if err != nil {
		a.dropped.Add(float64(n))
	}
	if failing := err != nil; failing != a.failing {
		a.failing = failing
		if failing {
			a.log.Warn("access log lost records", "err", err)
		} else {
			a.log.Info("access log writes again")
		}
	}
}
