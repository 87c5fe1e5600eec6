// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"io"
	"sync"

	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxSegment is the most that is handed to gVisor in one piece. It makes
	// segments of at most 65374 bytes (its GSO size less the room for headers);
	// 64 KiB would leave as one of that size and one of 162 bytes, and so on,
	// and bring the mean packet down to 32 KB.
	maxSegment = 65372

	// idleBuffer is what a copy towards the client holds while nothing comes.
	// It reads into a large buffer only once a read has filled the small one.
	idleBuffer = 4 << 10
)

type copyBuffer [64 << 10]byte

var copyBuffers = sync.Pool{New: func() any { return new(copyBuffer) }}

// WriteTo copies what the client sends to w until its FIN. It implements
// [io.WriterTo], for [io.Copy]. A buffer is held only while there is data.
func (c *TCPConn) WriteTo(w io.Writer) (int64, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	var total int64
	for {
		n, err := c.forward(w)
		total += int64(n)
		switch err {
		case nil:
		case errWouldBlock:
			<-c.readDeadline.wake
		case io.EOF:
			return total, nil
		default:
			return total, err
		}
	}
}

// forward copies one buffer, if there is something to read.
func (c *TCPConn) forward(w io.Writer) (int, error) {
	if !c.closed.Load() && !c.readDeadline.passed.Load() && c.ep.Readiness(waiter.ReadableEvents) == 0 {
		return 0, errWouldBlock
	}
	buf := copyBuffers.Get().(*copyBuffer)
	defer copyBuffers.Put(buf)
	n, err := c.tryRead(buf[:])
	if err != nil {
		return 0, err
	}
	m, err := w.Write(buf[:n])
	if err == nil && m < n {
		err = io.ErrShortWrite
	}
	return m, err
}

// ReadFrom copies r to the client until its end. It implements
// [io.ReaderFrom], for [io.Copy]; the client's direction is left open.
func (c *TCPConn) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	idle := make([]byte, idleBuffer)
	for {
		n, full, err := c.copyOnce(r, idle)
		total += n
		for full && err == nil { // there is more: in large pieces, until it runs dry
			n, full, err = c.copyBulk(r)
			total += n
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (c *TCPConn) copyBulk(r io.Reader) (int64, bool, error) {
	buf := copyBuffers.Get().(*copyBuffer)
	defer copyBuffers.Put(buf)
	n, _, err := c.copyOnce(r, buf[:maxSegment])
	return n, n > idleBuffer, err
}

// copyOnce reads once and writes what it got. It reports whether that filled
// the buffer.
func (c *TCPConn) copyOnce(r io.Reader, buf []byte) (int64, bool, error) {
	n, rerr := r.Read(buf)
	if n > 0 {
		m, err := c.Write(buf[:n])
		if err != nil {
			return int64(m), false, err
		}
	}
	return int64(n), n == len(buf), rerr
}
