// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// maxReplay bounds what is kept of a streamed request body so that a failed
// try can be repeated. A longer request is tried once; Envoy's buffer for that
// is 1 MiB by default, a multiple of what requests that fail usually carry.
const maxReplay = 64 << 10

// A source is a request's body. It is whole from the beginning, or it streams
// from the client and is read by one goroutine at a time.
type source struct {
	whole  []byte // the body, if streams is false; valid during the exchange
	length int64  // -1: chunked, or of no announced length

	streams bool
	body    io.Reader
	trailer func() http.Header // to be called after the end; may be nil
	keep    atomic.Bool        // remember what is read, for another try
	atEnd   func()             // called once when the body has been read to its end
	ready   func() bool        // is something at hand that was read ahead? nil: not known
	wg      sync.WaitGroup     // whoever reads

	kept   []byte
	pooled *[]byte // kept's storage if it is of the pool
	lost   bool    // more was read than is kept
	state  atomic.Uint32
	failed error        // of the client's side; read after state is sourceFailed
	n      atomic.Int64 // bytes read
}

// The states of a streaming source.
const (
	sourceUntouched uint32 = iota
	sourceReading
	sourceEnded
	sourceFailed
)

// Read reads what the client sends. An error of it ends the exchange.
func (s *source) Read(b []byte) (int, error) {
	s.state.CompareAndSwap(sourceUntouched, sourceReading)
	n, err := s.body.Read(b)
	s.n.Add(int64(n))
	if n > 0 && !s.lost {
		if s.lost = !s.keep.Load() || len(s.kept)+n > maxReplay; s.lost {
			s.kept = nil
		} else {
			s.kept = append(s.kept, b[:n]...)
		}
	}
	switch {
	case err == io.EOF:
		if s.state.Swap(sourceEnded) != sourceEnded && s.atEnd != nil {
			s.atEnd()
		}
	case err != nil:
		s.failed = err
		s.state.Store(sourceFailed)
	}
	return n, err
}

var replayBuffers = sync.Pool{New: func() any { b := make([]byte, 0, maxReplay); return &b }}

// remember keeps a streamed body as it is read. One of known size goes into a
// buffer of the pool; a stream of gRPC may well last for days with a few bytes.
func (s *source) remember() {
	if !s.streams || s.length > maxReplay {
		return
	}
	s.keep.Store(true)
	if s.length > 0 {
		s.pooled = replayBuffers.Get().(*[]byte)
		s.kept = (*s.pooled)[:0]
	}
}

// drop gives the memory back, when nobody reads any more.
func (s *source) drop() {
	if s.pooled != nil {
		replayBuffers.Put(s.pooled)
		s.pooled, s.kept = nil, nil
	}
}

// replayable reports whether another try can send the body: it was whole all
// along, was not begun, or was read to its end and kept.
func (s *source) replayable() bool {
	if !s.streams || s.state.Load() == sourceUntouched {
		return true
	}
	return s.state.Load() == sourceEnded && s.keep.Load() && !s.lost && len(s.trailers()) == 0
}

// rewind makes a replayable body ready for another try. The connection of the
// last one must have been given up, since its writer is waited for.
func (s *source) rewind() {
	s.wg.Wait()
	if s.streams && s.state.Load() == sourceEnded {
		s.streams, s.whole, s.length = false, s.kept, int64(len(s.kept))
	}
}

// ended reports whether nothing is left to read from the client.
func (s *source) ended() bool { return !s.streams || s.state.Load() == sourceEnded }

// received is the size of the body as far as it came in.
func (s *source) received() int64 {
	if n := s.n.Load(); n > 0 {
		return n
	}
	return int64(len(s.whole))
}

// trailers returns the trailer fields, once the body has ended.
func (s *source) trailers() http.Header {
	if s.trailer == nil {
		return nil
	}
	return s.trailer()
}

// A pump sends a request's body upstream while the response is read.
type pump struct {
	// sent is set before the last flush: the answer to it may be there before
	// the pump is seen to have ended.
	sent atomic.Bool
	done chan struct{}
	err  error // set before done is closed
}

// over reports whether the whole body was sent, for which it waits if that is
// only a matter of the pump's last steps.
func (p *pump) over() bool {
	if p.sent.Load() {
		<-p.done
	}
	select {
	case <-p.done:
		return p.err == nil
	default:
		return false
	}
}

// An outgoing is a request body as net/http's HTTP/2 client takes it. The
// client may go on reading after it has returned the response, and may close
// the body while it reads. The source's group waits until it does neither.
type outgoing struct {
	r     io.Reader
	atEOF func() // may be nil
	src   *source

	mu      sync.Mutex
	reading bool
	closed  bool
}

func (s *source) outgoing() *outgoing {
	o := &outgoing{r: s, src: s}
	if !s.streams {
		o.r = bytes.NewReader(s.whole)
	}
	s.wg.Add(1)
	return o
}

// Read reads the body for the HTTP/2 client.
func (o *outgoing) Read(b []byte) (int, error) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	o.reading = true
	o.mu.Unlock()
	n, err := o.r.Read(b)
	if err == io.EOF && o.atEOF != nil {
		o.atEOF()
	}
	o.mu.Lock()
	o.reading = false
	if o.closed {
		o.src.wg.Done()
	}
	o.mu.Unlock()
	return n, err
}

// Close ends the reading.
func (o *outgoing) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed = true
		if !o.reading {
			o.src.wg.Done()
		}
	}
	return nil
}
