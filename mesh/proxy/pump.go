// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"sync"
	"time"
)

const (
	// chunk is what a moving flow reads at once. netstack sends at most
	// 65,374 bytes in one TSO superpacket; 64 KiB would be cut into a large
	// and a tiny one.
	chunk = 65372
	// sip is what a waiting flow reads: small, as most flows wait most of the
	// time, and their buffers are all that they cost here.
	sip = 2 << 10
)

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// A counter counts what it writes, and keeps apart the failures of the side
// written to.
type counter struct {
	w      io.Writer
	r      *relay
	count  func(int)
	failed bool
}

func (c *counter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := c.w.Write(b)
	if err != nil {
		c.failed = true
		return n, err
	}
	c.count(n)
	if c.r.idle > 0 {
		c.r.moved.Store(time.Now().UnixNano())
	}
	return n, nil
}

// pump copies until the end of src, which is no error. It holds a large buffer
// only while there is much to move.
func pump(dst io.Writer, src io.Reader) error {
	more, _ := src.(instantReader)
	small := make([]byte, sip)
	buf := small
	var large *[chunk]byte
	defer func() {
		if large != nil {
			chunks.Put(large)
		}
	}()
	for {
		n, err := src.Read(buf)
		if err == nil && large != nil && more != nil {
			n, err = gather(more, buf, n)
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case large == nil && n == len(small):
			large = chunks.Get().(*[chunk]byte)
			buf = large[:]
		case large != nil && n < len(small):
			chunks.Put(large)
			large, buf = nil, small
		}
	}
}

// An instantReader hands out what has arrived in pieces, and tells whether there
// is another without waiting for it.
type instantReader interface {
	ReadNow(b []byte) (int, error)
}

// gather fills buf, which holds n bytes, with what is there already.
func gather(src instantReader, buf []byte, n int) (int, error) {
	for n < len(buf) {
		m, err := src.ReadNow(buf[n:])
		n += m
		if m == 0 || err != nil {
			return n, err
		}
	}
	return n, nil
}
