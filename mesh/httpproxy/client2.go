// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	// maxStreams bounds the concurrent requests of one connection.
	maxStreams = 1024
	// Windows for request bodies, which are what a client can make us hold.
	uploadPerStream = 1 << 20
	uploadPerConn   = 4 << 20
)

// serve2 serves a connection whose client speaks HTTP/2 without TLS. net/http
// does the protocol: it is given a listener of one connection.
func (p *Proxy) serve2(ctx context.Context, conn Conn, in *Downstream) {
	var protos http.Protocols
	protos.SetUnencryptedHTTP2(true)
	l := &oneConn{conn: conn, done: make(chan struct{})}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !l.enter() {
				panic(http.ErrAbortHandler) // started late, on a connection that is gone
			}
			defer l.handlers.Done()
			(&client2{p: p, in: in, ctx: ctx, w: w, rc: http.NewResponseController(w)}).serve(r)
		}),
		Protocols:                    &protos,
		DisableGeneralOptionsHandler: true, // OPTIONS * is the endpoint's to answer
		IdleTimeout:                  in.Manager.IdleTimeout,
		MaxHeaderBytes:               maxHead,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ErrorLog:                     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     uploadPerStream,
			MaxReceiveBufferPerConnection: uploadPerConn,
		},
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				l.finish()
			}
		},
	}
	if n := in.Manager.MaxHeaderBytes; n > 0 {
		srv.MaxHeaderBytes = n
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	_ = srv.Serve(l) // always fails, once the one connection has ended
	stop()
	_ = conn.Close() // again, in case it was never accepted
	l.leave()
}

// oneConn is a listener that has one connection to give, and knows the handlers
// of its requests: net/http does not wait for them.
type oneConn struct {
	conn  net.Conn
	given bool
	once  sync.Once
	done  chan struct{} // closed by finish

	mu       sync.Mutex
	left     bool // no handler may begin any more
	handlers sync.WaitGroup
}

func (l *oneConn) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.left {
		l.handlers.Add(1)
	}
	return !l.left
}

// leave waits for the handlers under way.
func (l *oneConn) leave() {
	l.mu.Lock()
	l.left = true
	l.mu.Unlock()
	l.handlers.Wait()
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.done
	return nil, io.EOF
}

func (l *oneConn) finish()        { l.once.Do(func() { close(l.done) }) }
func (l *oneConn) Close() error   { l.finish(); return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// A client2 is one stream of an HTTP/2 client.
type client2 struct {
	p   *Proxy
	in  *Downstream
	ctx context.Context // of the connection
	w   http.ResponseWriter
	rc  *http.ResponseController

	mu     sync.Mutex // guards the following, and the writing of 1xx responses
	headed bool       // the final response has begun
	broken bool       // the stream is to be reset
}

func (c *client2) serve(r *http.Request) {
	x := &exchange{p: c.p, in: c.in, c: c, ctx: r.Context(), r: r, h2: true}
	x.src.length, x.src.streams, x.src.body = r.ContentLength, r.ContentLength != 0, r.Body
	if x.src.streams {
		x.src.trailer = func() http.Header { return r.Trailer }
	}
	delete(r.Header, "Content-Length")
	_ = stripHop(r.Header)
	x.begin()
	stop := context.AfterFunc(x.ctx, func() {
		why := errClientGone
		if c.ctx.Err() != nil && !errors.Is(context.Cause(c.ctx), errClientGone) {
			why = errDrained
		}
		x.life.cut(why)
	})
	if err := c.check(r); err != nil {
		x.answer(&reply{status: err.status, reason: "bad_request", err: err})
	} else {
		x.run()
	}
	stop()
	_ = r.Body.Close() // ends a pump that waits for the client
	x.src.wg.Wait()
	x.finish()
	c.mu.Lock()
	broken := c.broken
	c.mu.Unlock()
	if broken {
		panic(http.ErrAbortHandler) // net/http's word for: reset the stream
	}
}

func (c *client2) check(r *http.Request) *badRequest {
	switch {
	case r.Method == http.MethodConnect:
		return &badRequest{status: http.StatusMethodNotAllowed, why: "CONNECT is not supported"}
	case r.Host == "" || !httpguts.ValidHostHeader(r.Host):
		return &badRequest{status: http.StatusBadRequest, why: "malformed authority"}
	}
	return nil
}

// abort implements client. A handler that waits for the client to read fails
// at once.
func (c *client2) abort() {
	c.mu.Lock()
	c.broken = true
	c.mu.Unlock()
	_ = c.rc.SetWriteDeadline(time.Unix(1, 0)) // of the stream; it may be gone already
}

// informational implements client.
func (c *client2) informational(status int, h http.Header) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headed || status == http.StatusContinue {
		return nil // net/http sends 100 itself, when the body is first read
	}
	out := c.w.Header()
	clear(out)
	for k, v := range h {
		if !ours(k) {
			out[k] = v
		}
	}
	c.w.WriteHeader(status)
	clear(out)
	return nil
}

// header fills in the head of a response. Fields that net/http would add are
// kept from it.
func (c *client2) header(h http.Header) {
	out := c.w.Header()
	for k, v := range h {
		if !ours(k) || k == "Content-Length" {
			out[k] = v
		}
	}
	for _, k := range []string{"Date", "Content-Type"} {
		if out[k] == nil {
			out[k] = nil
		}
	}
}

// respond implements client.
func (c *client2) respond(x *exchange, r *http.Response) (side, error) {
	c.mu.Lock()
	c.headed = true
	c.mu.Unlock()
	x.begun.Store(true)
	c.header(r.Header)
	c.w.WriteHeader(r.StatusCode)
	if x.r.Method != http.MethodHead {
		if s, err := c.relay(x, r); err != nil {
			return s, err
		}
	}
	stripTrailers(r.Trailer)
	for k, v := range r.Trailer {
		c.w.Header()[http.TrailerPrefix+k] = v
	}
	return sideNone, nil
}

func (c *client2) relay(x *exchange, r *http.Response) (side, error) {
	// A head that is all there is must end its stream itself: gRPC clients take
	// the status from such a one.
	if r.ContentLength != 0 && !x.answerReady() {
		if err := c.rc.Flush(); err != nil {
			return sideWrite, err
		}
	}
	buf := relayBuffers.Get().(*[]byte)
	defer relayBuffers.Put(buf)
	b := (*buf)[:cap(*buf)]
	for {
		n, err := r.Body.Read(b)
		if n > 0 {
			x.rec.BytesSent += int64(n)
			x.touch(n)
			if _, err := c.w.Write(b[:n]); err != nil {
				return sideWrite, err
			}
		}
		switch {
		case err == io.EOF:
			return sideNone, nil
		case err != nil:
			return sideRead, err
		}
		if err := c.rc.Flush(); err != nil {
			return sideWrite, err
		}
	}
}

// reply implements client.
func (c *client2) reply(x *exchange, r *reply) error {
	c.mu.Lock()
	c.headed = true
	c.mu.Unlock()
	x.begun.Store(true)
	c.header(r.header)
	c.w.WriteHeader(r.status)
	if len(r.body) == 0 || x.r.Method == http.MethodHead {
		return nil
	}
	x.rec.BytesSent = int64(len(r.body))
	_, err := c.w.Write(r.body)
	return err
}

// switched implements client: HTTP/2 knows no upgrade, so none was asked for.
func (c *client2) switched(*exchange, *attempt) error { return errProtocol }
