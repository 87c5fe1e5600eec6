// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"sync"
)

const (
	// maxRecord is the most that one TLS record carries (RFC 8446, 5.1).
	maxRecord = 16 << 10
	// recordOverhead is more than a record adds: header, content type and tag.
	recordOverhead = 64
	// batchRecords is how many records go into one system call: as many as
	// make one TSO packet of the kernel's.
	batchRecords = 4
)

type recordBatch [batchRecords * (maxRecord + recordOverhead)]byte

var recordBatches = sync.Pool{New: func() any { return new(recordBatch) }}

// Write writes. Under TLS what is larger than a record leaves in one system
// call for several records: crypto/tls makes one for each, and each then goes
// down the kernel's stack as a packet of its own.
func (c *Conn) Write(b []byte) (int, error) {
	if c.tls == nil || len(b) <= maxRecord {
		return c.Conn.Write(b)
	}
	buf := recordBatches.Get().(*recordBatch)
	defer recordBatches.Put(buf)
	c.wire.hold(buf[:0])
	n, err := c.tls.Write(b)
	if ferr := c.wire.letGo(); err == nil && ferr != nil {
		n, err = 0, ferr
	}
	return n, err
}

// hold makes writes wait in buf, until letGo or until it is full.
func (w *wire) hold(buf []byte) {
	w.mu.Lock()
	w.held = buf
	w.mu.Unlock()
}

// letGo writes what waits, and lets later writes through.
func (w *wire) letGo() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.flushLocked()
	w.held = nil
	return err
}

// Write is called by crypto/tls, one record at a time. It may come from a
// reader too, which answers a KeyUpdate, but never within a Write of ours:
// crypto/tls has a lock of its own around each.
func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return w.Conn.Write(b)
	}
	if len(w.held)+len(b) > cap(w.held) {
		if err := w.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(b) > cap(w.held) {
		return w.Conn.Write(b)
	}
	w.held = append(w.held, b...)
	return len(b), nil
}

func (w *wire) flushLocked() error {
	if len(w.held) == 0 {
		return nil
	}
	w.flushing.Store(true)
	_, err := w.Conn.Write(w.held)
	w.flushing.Store(false)
	w.held = w.held[:0]
	return err
}
