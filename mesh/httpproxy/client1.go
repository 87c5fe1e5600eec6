// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lingerTime and lingerBytes bound how long a client that was answered
	// before its request was whole may go on sending, so that the answer is
	// not lost to a reset (RFC 9112 9.6).
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// readers saves the read buffers of connections.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

// A client1 is an HTTP/1 connection of a client.
type client1 struct {
	// Set at the start, then read-only.
	p    *Proxy
	in   *Downstream
	conn Conn
	ctx  context.Context

	// Owned by the goroutine that serves.
	head  headReader
	count counter
	w     writer
	keys  []string // scratch
	last  bool     // the connection ends with this exchange
	x     *exchange

	mu      sync.Mutex // guards the following
	current *exchange
	cutFor  error // the connection is cut: no exchange begins

	aborted atomic.Bool
}

// serve1 serves a connection whose client speaks HTTP/1, or begins with the
// preface of HTTP/2.
func (p *Proxy) serve1(ctx context.Context, conn Conn, in *Downstream) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &client1{p: p, in: in, conn: conn, ctx: ctx}
	br := readers.Get().(*bufio.Reader)
	small := writers.Get().(*[]byte)
	c.count.r = conn
	br.Reset(&c.count)
	c.head = headReader{conn: &c.count, br: br}
	c.w.small = *small
	c.w.reset(conn)

	stop := context.AfterFunc(ctx, func() { c.cut(errDrained) })
	conn.OnReset(func() { c.cut(errClientGone); cancel(errClientGone) })
	if c.preface() {
		stop()
		p.serve2(ctx, &replayed{Conn: conn, r: c.head.br}, in)
		return
	}
	for c.one() {
	}
	stop()
	conn.OnReset(func() {})
	_ = conn.Close() // all that was to be said was said, or the client is gone
	c.w.drop()
	writers.Put(small)
	br.Reset(nil)
	readers.Put(br)
}

// preface looks whether the connection begins as one of HTTP/2.
func (c *client1) preface() bool {
	for n := 1; n <= len(preface); {
		b, err := c.head.br.Peek(n)
		if err != nil || string(b) != preface[:n] {
			return false
		}
		n = max(n+1, min(c.head.br.Buffered(), len(preface)))
	}
	return true
}

// cut ends what is under way, and the connection with it.
func (c *client1) cut(why error) {
	c.mu.Lock()
	x := c.current
	if c.cutFor == nil {
		c.cutFor = why
	}
	c.mu.Unlock()
	if x == nil {
		_ = c.conn.Close() // idle: its reader ends
		return
	}
	if x.life.cut(why) && errors.Is(why, errDrained) {
		c.abort() // the client may be the one that is waited for
	}
}

// claim makes x the exchange to be cut; nil: the connection is idle. It reports
// false if the connection is cut.
func (c *client1) claim(x *exchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = x
	return c.cutFor == nil
}

// one serves one request, and reports whether another one may follow.
func (c *client1) one() bool {
	if !c.await() {
		return false
	}
	most := maxHead
	if n := c.in.Manager.MaxHeaderBytes; n > 0 {
		most = n
	}
	start := c.count.n - int64(c.head.br.Buffered())
	r, err := c.head.readRequest(most)
	x := &exchange{p: c.p, in: c.in, c: c, ctx: c.ctx, r: r}
	c.x, c.last = x, true
	if err != nil {
		return c.refuse(x, err)
	}
	if r.Host == "" {
		r.Host = defaultHost(c.in.Manager, c.in.Dst)
	}
	x.upgrade = stripHop(r.Header)
	c.last = r.Close
	c.body(x)
	x.begin()
	w0 := c.w.n
	if c.claim(x) {
		x.run()
	} else {
		x.answer(cutReply(c.cutReason()))
	}
	c.claim(nil)
	c.settle(x)
	x.rec.RequestBytes = c.count.n - int64(c.head.br.Buffered()) - start
	x.rec.ResponseBytes = c.w.n - w0
	x.finish()
	return x.whole && !c.last && !c.aborted.Load()
}

// await waits for a request to begin.
func (c *client1) await() bool {
	if c.head.br.Buffered() > 0 {
		return true
	}
	if c.w.flush() != nil {
		return false
	}
	if d := c.in.Manager.IdleTimeout; d > 0 {
		t := time.AfterFunc(d, func() { _ = c.conn.Close() })
		defer t.Stop()
	}
	_, err := c.head.br.Peek(1)
	return err == nil
}

// refuse answers a request that could not be read.
func (c *client1) refuse(x *exchange, err error) bool {
	var b *badRequest
	if !errors.As(err, &b) {
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || c.cutReason() != nil {
			return false // between two requests, or gone
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			return false
		}
		b = &badRequest{status: http.StatusBadRequest, why: "the connection ended inside a request's head"}
	}
	if x.r == nil {
		x.r = &http.Request{Method: "-", ProtoMajor: 1, ProtoMinor: 1}
	}
	w0 := c.w.n
	x.begin()
	x.answer(&reply{status: b.status, reason: "bad_request", err: b, close: true})
	x.rec.ResponseBytes = c.w.n - w0
	x.finish()
	c.linger(nil)
	return false
}

func (c *client1) cutReason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cutFor
}

// body finds out where the request's body is. One that came with the head is
// taken from the buffer as it lies there.
func (c *client1) body(x *exchange) {
	r, br := x.r, c.head.br
	if n := r.ContentLength; n >= 0 && n <= int64(br.Buffered()) {
		x.src.length = n
		x.src.whole, _ = br.Peek(int(n)) // buffered: cannot fail
		return
	}
	x.src.length, x.src.streams, x.src.body = r.ContentLength, true, r.Body
	x.src.ready = func() bool { return br.Buffered() > 0 }
	if r.ContentLength < 0 {
		x.src.trailer = func() http.Header { return r.Trailer }
	}
}

// settle brings the connection to the end of the request.
func (c *client1) settle(x *exchange) {
	if !x.src.ended() {
		x.whole = false
		c.linger(&x.src.wg)
		return
	}
	x.src.wg.Wait() // an HTTP/2 stream may still have hold of the buffer
	if x.src.n.Load() == 0 {
		_, _ = c.head.br.Discard(len(x.src.whole)) // buffered: cannot fail
	}
}

// linger lets the client finish sending after it was answered already, within
// bounds. reader is who reads the body, if anybody does.
func (c *client1) linger(reader *sync.WaitGroup) {
	if c.aborted.Load() || c.w.flush() != nil || c.conn.CloseWrite() != nil {
		_ = c.conn.Close() // ends the reader too
		if reader != nil {
			reader.Wait()
		}
		return
	}
	t := time.AfterFunc(lingerTime, func() { _ = c.conn.Close() })
	defer t.Stop()
	if reader != nil {
		reader.Wait()
	}
	_, _ = io.CopyN(io.Discard, c.head.br, lingerBytes) // its end is all that is waited for
}

// abort implements client.
func (c *client1) abort() {
	c.aborted.Store(true)
	c.conn.Abort()
}

// informational implements client. HTTP/1.0 knows no 1xx.
func (c *client1) informational(status int, h http.Header) error {
	if c.x.r.ProtoMinor == 0 {
		return nil
	}
	c.w.str("HTTP/1.1 " + statusLine(status) + "\r\n")
	c.keys = c.w.fields(h, c.keys)
	c.w.str("\r\n")
	return c.w.flush()
}

// statusAndFields writes a head up to its framing.
func (c *client1) statusAndFields(status string, h http.Header) {
	c.w.str("HTTP/1.")
	c.w.bytes([]byte{'0' + byte(c.x.r.ProtoMinor)})
	c.w.str(" ")
	c.w.str(status)
	c.w.str("\r\n")
	c.keys = c.w.fields(h, c.keys)
}

// closing writes what tells the client whether the connection stays.
func (c *client1) closing(x *exchange) {
	// A client that awaits leave to send its body, and gets an answer instead,
	// will not send it.
	unsent := !x.src.ended() && x.src.n.Load() == 0 && x.r.Header["Expect"] != nil
	switch {
	case c.last || unsent:
		c.last = true
		c.w.str("Connection: close\r\n")
	case x.r.ProtoMinor == 0:
		c.w.str("Connection: keep-alive\r\n")
	}
}

// respond implements client.
func (c *client1) respond(x *exchange, r *http.Response) (side, error) {
	w := &c.w
	bodiless := x.r.Method == http.MethodHead || r.StatusCode == http.StatusNoContent || r.StatusCode == http.StatusNotModified
	chunked := r.ContentLength < 0 && !bodiless
	if chunked && x.r.ProtoMinor == 0 {
		chunked, c.last = false, true // the end of the connection ends the body
	}
	x.begun.Store(true)
	c.statusAndFields(r.Status, r.Header)
	switch cl := r.Header["Content-Length"]; {
	case chunked:
		c.keys = w.trailer(r.Trailer, c.keys)
		w.str("Transfer-Encoding: chunked\r\n")
	case bodiless && len(cl) > 0 && r.StatusCode != http.StatusNoContent:
		w.field("Content-Length", cl[0])
	case !bodiless && r.ContentLength >= 0:
		w.number("Content-Length", r.ContentLength)
	}
	c.closing(x)
	w.str("\r\n")
	if !bodiless && r.ContentLength != 0 {
		if s, err := c.relay(x, r, chunked); err != nil {
			return s, err
		}
	}
	// A pipelined request lets the answers leave together. While a body
	// streams the buffer is its pump's.
	if c.last || x.src.streams || c.head.br.Buffered() == 0 {
		if err := w.flush(); err != nil {
			return sideWrite, err
		}
	}
	w.shrink()
	return sideNone, nil
}

func (c *client1) relay(x *exchange, r *http.Response, chunked bool) (side, error) {
	if !x.answerReady() { // the head must not wait for a body that may be slow to come
		if err := c.w.flush(); err != nil {
			return sideWrite, err
		}
	}
	s, err := c.w.relay(r.Body, chunked, func(n int) {
		x.rec.BytesSent += int64(n)
		x.touch(n)
	})
	if err != nil {
		return s, err
	}
	if chunked {
		stripTrailers(r.Trailer)
		c.keys = c.w.endChunks(r.Trailer, c.keys)
	}
	return sideNone, nil
}

// reply implements client.
func (c *client1) reply(x *exchange, r *reply) error {
	c.last = c.last || r.close
	x.begun.Store(true)
	c.statusAndFields(statusLine(r.status), r.header)
	c.w.number("Content-Length", int64(len(r.body)))
	c.closing(x)
	c.w.str("\r\n")
	if x.r.Method != http.MethodHead {
		c.w.bytes(r.body)
		x.rec.BytesSent = int64(len(r.body))
	}
	return c.w.flush()
}
