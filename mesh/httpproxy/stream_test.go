// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Expect: 100-continue passes end to end: it is the endpoint that says whether
// it wants the body.
func TestExpectContinue(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		for {
			head, err := s.head()
			if err != nil {
				return
			}
			if !strings.Contains(head, "Expect: 100-continue\r\n") {
				s.say(ok("no Expect: " + head))
				continue
			}
			if strings.Contains(head, "/no") {
				s.say("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
				continue
			}
			s.say("HTTP/1.1 100 Continue\r\n\r\n")
			b := make([]byte, 5)
			if _, err := io.ReadFull(s.br, b); err != nil {
				return
			}
			s.say(ok(string(b)))
		}
	})
	e.start()
	c := e.client()
	for range 3 {
		c.send("PUT / HTTP/1.1\r\nHost: echo.testing\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		c.expect("HTTP/1.1 100 Continue\r\n\r\n")
		c.send("hello")
		c.expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	}
	if s := e.cfg.Upstream.Status(); s.Dials != 1 {
		t.Errorf("%d upstream connections", s.Dials)
	}
	c.send("PUT /no HTTP/1.1\r\nHost: echo.testing\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	c.expect("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	if rest, err := c.all(); rest != "" || err != nil {
		t.Errorf("then %q, %v", rest, err)
	}
}

// Request and response flow at the same time.
func TestDuplex(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		r, err := http.ReadRequest(s.br)
		if err != nil {
			return
		}
		s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		b := make([]byte, 64)
		for {
			n, err := r.Body.Read(b)
			if n > 0 {
				s.say(string("0123456789abcdef"[n]) + "\r\n" + string(b[:n]) + "\r\n")
			}
			if err != nil {
				s.say("0\r\n\r\n")
				break
			}
		}
		if r, err := http.ReadRequest(s.br); err == nil {
			s.say(ok("second on the same connection " + r.URL.Path))
		}
	})
	e.start()
	c := e.client()
	c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nTransfer-Encoding: chunked\r\n\r\n")
	c.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
	for _, word := range []string{"one", "two", "three"} {
		c.send("0000" + string("0123456789"[len(word)]) + "\r\n" + word + "\r\n")
		c.expect(string("0123456789"[len(word)]) + "\r\n" + word + "\r\n")
	}
	c.send("0\r\n\r\n")
	c.expect("0\r\n\r\n")
	c.send("GET /2 HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
	if _, body := c.response("GET"); body != "second on the same connection /2" {
		t.Errorf("%q", body)
	}
}

func TestRequestTrailers(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		all := ""
		for !strings.HasSuffix(all, "0\r\nX-More: 1\r\nX-Sum: 9\r\n\r\n") {
			line, err := s.br.ReadString('\n')
			if err != nil {
				return
			}
			all += line
		}
		s.say(ok(all))
	})
	e.start()
	c := e.client()
	c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\nX-More: 1\r\n\r\n")
	if _, body := c.response("POST"); !strings.Contains(body, "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n") {
		t.Errorf("%q", body)
	}
}

// An endpoint that refuses a body does so before it has it all, and the client
// gets to read that.
func TestEarlyAnswer(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		if _, err := s.head(); err == nil {
			s.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
		}
	})
	e.start()
	c := e.client()
	var wg sync.WaitGroup
	wg.Go(func() {
		block := strings.Repeat("x", 32<<10)
		_, _ = io.WriteString(c.Conn, "POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 1000000000\r\n\r\n")
		for {
			if _, err := io.WriteString(c.Conn, block); err != nil {
				return
			}
		}
	})
	r, body := c.response("POST")
	if r.StatusCode != 413 || body != "big" {
		t.Errorf("%d %q", r.StatusCode, body)
	}
	if rest, err := c.all(); rest != "" {
		t.Errorf("then %q, %v", rest, err)
	}
	wg.Wait()
	e.record(c, "status", 413, "reason", "")
}

func TestServerSentEvents(t *testing.T) {
	e := newEnv(t)
	next := make(chan string)
	e.serve(hostA, func(s *server) {
		if _, err := s.head(); err != nil {
			return
		}
		s.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		for ev := range next {
			s.say(ev)
		}
	})
	e.start()
	c := e.client()
	c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
	c.expect("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n") // before any event
	for _, ev := range []string{"data: 1\n\n", "data: 2\n\n"} {
		next <- ev
		c.expect("9\r\n" + ev + "\r\n")
	}
	close(next)
	c.expect("0\r\n\r\n")
}

// A client that resets cancels at once what it waits for, wherever that is.
func TestClientGone(t *testing.T) {
	for _, tt := range []struct {
		name, request string
		body          bool
	}{
		{"thinking", "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", false},
		{"streaming", "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", true},
		{"uploading", "POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 1000\r\n\r\nabc", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			arrived, gone := make(chan struct{}), make(chan error, 1)
			e.serve(hostA, func(s *server) {
				if _, err := s.head(); err != nil {
					return
				}
				if tt.body {
					s.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
				}
				close(arrived)
				_, err := io.Copy(io.Discard, s.br)
				gone <- err
			})
			e.start()
			c := e.client()
			c.send(tt.request)
			<-arrived
			if tt.body {
				c.expect("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
			}
			c.Abort()
			if err := <-gone; err == nil {
				t.Error("the endpoint saw an orderly end")
			}
			status := 0
			if tt.body {
				status = 200
			}
			e.record(c, "reason", "client_gone", "flags", "DC", "status", status)
		})
	}
}

// A client that only closes its sending side waits for its answer.
func TestHalfClosedClient(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, mirror)
	e.start()
	c := e.client()
	c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
	_ = c.CloseWrite()
	if r, _ := c.response("GET"); r.StatusCode != 200 {
		t.Errorf("%d", r.StatusCode)
	}
	if rest, err := c.all(); rest != "" || err != nil {
		t.Errorf("then %q, %v", rest, err)
	}
}

// A request body that breaks off or is malformed ends the request upstream,
// and never looks whole there.
func TestBrokenRequestBody(t *testing.T) {
	for _, tt := range []struct{ name, body string }{
		{"cut", "5\r\nab"}, {"malformed", "5\r\nabcde\r\nzz\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			arrived, got := make(chan struct{}), make(chan error, 1)
			e.serve(hostA, func(s *server) {
				r, err := http.ReadRequest(s.br)
				close(arrived)
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
				}
				got <- err
			})
			e.start()
			c := e.client()
			c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nTransfer-Encoding: chunked\r\n\r\n")
			<-arrived
			c.send(tt.body)
			_ = c.CloseWrite()
			r, _ := c.response("POST")
			if r.StatusCode != 400 {
				t.Errorf("client got %d", r.StatusCode)
			}
			if err := <-got; err == nil {
				t.Error("the endpoint took the body for whole")
			}
			e.record(c, "reason", "bad_request", "status", 400)
		})
	}
}

// A reader that does not read stops the sender, and does not fill memory.
func TestBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		var sent int64
		e.serve(hostA, func(s *server) {
			if _, err := s.head(); err != nil {
				return
			}
			s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			chunk := "4000\r\n" + strings.Repeat("x", 0x4000) + "\r\n"
			for {
				if _, err := io.WriteString(s.Conn, chunk); err != nil {
					return
				}
				sent += 0x4000
			}
		})
		e.start()
		c := e.client()
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
		time.Sleep(time.Minute) //rule:allow the bubble's clock
		synctest.Wait()
		if sent < 64<<10 || sent > 512<<10 {
			t.Errorf("%d bytes were taken from the sender", sent)
		}
		c.Abort()
		<-c.done
	})
}

// Bodies of all sizes arrive whole, both ways at once, on one connection.
func TestBodySizes(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		for {
			r, err := http.ReadRequest(s.br)
			if err != nil {
				return
			}
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			resp := &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(b)), Body: io.NopCloser(strings.NewReader(string(b)))}
			if r.ContentLength < 0 {
				resp.ContentLength, resp.TransferEncoding = -1, []string{"chunked"}
			}
			if resp.Write(s.Conn) != nil {
				return
			}
		}
	})
	e.start()
	c := e.client()
	for _, size := range []int{0, 1, 3000, 4096, 5000, 16 << 10, 32<<10 - 8, 32 << 10, 32<<10 + 1, 100 << 10, 3 << 20} {
		for _, chunked := range []bool{false, true} {
			b := make([]byte, size)
			_, _ = rand.Read(b)
			r, err := http.NewRequest(http.MethodPost, "http://echo.testing/", io.NopCloser(strings.NewReader(string(b))))
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = int64(size)
			if chunked {
				r.ContentLength = -1
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := r.Write(c.Conn); err != nil {
					t.Errorf("send: %v", err)
				}
			})
			_, got := c.response("POST")
			wg.Wait()
			if sha256.Sum256([]byte(got)) != sha256.Sum256(b) {
				t.Errorf("size %d, chunked %v: %d bytes came back, or others", size, chunked, len(got))
			}
		}
	}
	if s := e.cfg.Upstream.Status(); s.Dials != 1 {
		t.Errorf("%d upstream connections", s.Dials)
	}
}

// The end of the program cuts what is under way and leaves nothing behind.
func TestDrain(t *testing.T) {
	e := newEnv(t)
	arrived := make(chan struct{})
	e.serve(hostA, func(s *server) {
		if _, err := s.head(); err == nil {
			close(arrived)
			_, _ = io.Copy(io.Discard, s.br)
		}
	})
	e.start()
	idle, busy := e.client(), e.client()
	busy.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
	<-arrived
	e.cancel()
	<-idle.done
	<-busy.done
	if _, err := busy.all(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("busy client saw %v", err)
	}
	if rest, err := idle.all(); rest != "" || err != nil {
		t.Errorf("idle client saw %q, %v", rest, err)
	}
	e.record(busy, "reason", "drained")
}
