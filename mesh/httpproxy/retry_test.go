// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func TestRetryAvoidsTheHostThatFailed(t *testing.T) {
	e := newEnv(t)
	e.route.Action.Retry = istiodRetry()
	e.endpoints(hostA, hostB) // nothing listens at A
	e.answer(hostB, mirror)
	e.start()
	c := e.client()
	for range 8 {
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
		if r, body := c.response("GET"); r.StatusCode != 200 {
			t.Errorf("%d %s", r.StatusCode, body)
		}
	}
	if s := e.proxy.Status(); s.Retries == 0 || s.Retries > 8 {
		t.Errorf("%d retries: with previous hosts avoided each request needs one at most", s.Retries)
	}
}

func TestRetryOnStatus(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []string // by the endpoint, one a try
		policy  *resource.RetryPolicy
		status  int
		tries   int
		flags   string
	}{
		{"503 then 200", []string{"503", "200"}, istiodRetry(), 200, 2, ""},
		{"503 for ever", []string{"503", "503", "503", "200"}, istiodRetry(), 503, 3, "URX"},
		{"500 is an answer", []string{"500", "200"}, istiodRetry(), 500, 1, ""},
		{"no policy", []string{"503", "200"}, nil, 503, 1, ""},
		{"5xx", []string{"500", "502", "200"}, &resource.RetryPolicy{Max: 2, On: resource.Retry5xx}, 200, 3, ""},
		{"gateway error", []string{"504", "500"}, &resource.RetryPolicy{Max: 2, On: resource.RetryGatewayError}, 500, 2, ""},
		{"409", []string{"409", "200"}, &resource.RetryPolicy{Max: 1, On: resource.RetryRetriable4xx}, 200, 2, ""},
		{"reset", []string{"reset", "200"}, &resource.RetryPolicy{Max: 1, On: resource.RetryReset}, 200, 2, ""},
		{"reset is none of istiod's", []string{"reset", "200"}, istiodRetry(), 503, 1, "UC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.route.Action.Retry = tt.policy
			var n atomic.Int64
			e.serve(hostA, func(s *server) {
				for {
					head, err := s.head()
					if err != nil {
						return
					}
					if _, err := io.CopyN(io.Discard, s.br, int64(contentLength(head))); err != nil {
						return
					}
					switch code := tt.answers[n.Add(1)-1]; code {
					case "reset":
						s.raw().Abort()
						return
					default:
						s.say("HTTP/1.1 " + code + " X\r\nContent-Length: 4\r\n\r\nbody")
					}
				}
			})
			e.start()
			c := e.client()
			c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 3\r\n\r\nabc")
			r, body := c.response("POST")
			if r.StatusCode != tt.status {
				t.Errorf("%d %s", r.StatusCode, body)
			}
			e.record(c, "status", tt.status, "tries", tt.tries, "flags", tt.flags)
		})
	}
}

// A streamed body is kept up to a bound for another try; a longer one is not
// sent twice, nor is one whose end has not come.
func TestRetryOfStreamedBodies(t *testing.T) {
	for _, tt := range []struct {
		size, status, tries int
	}{{1 << 10, 200, 2}, {60 << 10, 200, 2}, {80 << 10, 503, 1}} {
		t.Run(fmt.Sprint(tt.size), func(t *testing.T) {
			e := newEnv(t)
			e.route.Action.Retry = istiodRetry()
			var n atomic.Int64
			var bodies [2]int
			e.serve(hostA, func(s *server) {
				for {
					head, err := s.head()
					if err != nil || !strings.Contains(head, "Transfer-Encoding: chunked") && n.Load() == 0 {
						return
					}
					i := n.Add(1) - 1
					got, err := readBody(s, head)
					if err != nil {
						return
					}
					bodies[i] = got
					s.say("HTTP/1.1 " + []string{"503", "200"}[i] + " X\r\nContent-Length: 0\r\n\r\n")
				}
			})
			e.start()
			c := e.client()
			var wg sync.WaitGroup
			wg.Go(func() {
				c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nTransfer-Encoding: chunked\r\n\r\n")
				for left := tt.size; left > 0; left -= 1 << 10 {
					c.send("400\r\n" + strings.Repeat("x", 1<<10) + "\r\n")
				}
				c.send("0\r\n\r\n")
			})
			r, _ := c.response("POST")
			wg.Wait()
			if r.StatusCode != tt.status {
				t.Errorf("status %d", r.StatusCode)
			}
			for i := range tt.tries {
				if bodies[i] != tt.size {
					t.Errorf("try %d got %d bytes of %d", i+1, bodies[i], tt.size)
				}
			}
			e.record(c, "tries", tt.tries, "bytes_in", tt.size)
		})
	}
}

// A pooled connection that turns out to be dead costs nothing but another
// connection, also for a POST whose body is at hand, and without a policy.
func TestReplayOnADeadConnection(t *testing.T) {
	e := newEnv(t)
	var conns atomic.Int64
	e.serve(hostA, func(s *server) {
		conns.Add(1)
		head, err := s.head()
		if err != nil {
			return
		}
		s.say(mirror(head, s))
		_, _ = s.head() // the next request is taken and never answered
	})
	e.start()
	c := e.client()
	for range 3 {
		c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 3\r\n\r\nabc")
		if r, body := c.response("POST"); r.StatusCode != 200 {
			t.Errorf("%d %s", r.StatusCode, body)
		}
	}
	if s := e.proxy.Status(); s.Replays != 2 || conns.Load() != 3 {
		t.Errorf("%d replays on %d connections", s.Replays, conns.Load())
	}
}

// One that dies while it is new is the endpoint's failure, and is told.
func TestNoReplayOnANewConnection(t *testing.T) {
	e := newEnv(t)
	var conns atomic.Int64
	e.serve(hostA, func(s *server) { conns.Add(1); _, _ = s.head() })
	e.start()
	c := e.client()
	c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
	if r, _ := c.response("GET"); r.StatusCode != 503 || conns.Load() != 1 {
		t.Errorf("%d after %d connections", r.StatusCode, conns.Load())
	}
	e.record(c, "reason", "upstream_reset", "flags", "UC")
}

func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*env)
		request string
		status  int
		after   time.Duration
		reason  string
		flags   string
		tries   int
	}{
		{"route", func(e *env) { e.route.Action.Timeout = 3 * time.Second }, "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", 504, 3 * time.Second, "timeout", "UT", 1},
		{"per try", func(e *env) {
			e.route.Action.Retry = &resource.RetryPolicy{Max: 2, On: resource.Retry5xx, PerTryTimeout: time.Second, BackoffBase: time.Nanosecond}
		}, "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", 504, 3 * time.Second, "timeout", "UT,URX", 3},
		{"route before tries", func(e *env) {
			e.route.Action.Timeout = 1500 * time.Millisecond
			e.route.Action.Retry = &resource.RetryPolicy{Max: 2, On: resource.Retry5xx, PerTryTimeout: time.Second, BackoffBase: time.Nanosecond}
		}, "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", 504, 1500 * time.Millisecond, "timeout", "UT", 2},
		{"idle", func(e *env) { e.route.Action.IdleTimeout = 4 * time.Second }, "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", 504, 4 * time.Second, "idle", "SI", 1},
		{"whole request", func(e *env) { e.manager.RequestTimeout = 2 * time.Second }, "POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 9\r\n\r\n", 408, 2 * time.Second, "bad_request", "DPE", 1},
		{"connect", func(e *env) {
			e.cluster.ConnectTimeout = 2 * time.Second
			e.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}, "GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n", 503, 2 * time.Second, "timeout", "UF", 1},
		{"grpc-timeout is not read", func(e *env) { e.route.Action.Timeout = 3 * time.Second }, "POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Type: application/grpc\r\nGrpc-Timeout: 1S\r\nContent-Length: 0\r\n\r\n", 200, 3 * time.Second, "timeout", "UT", 1},
		{"grpc-timeout", func(e *env) { e.route.Action.MaxGRPCTimeout = new(time.Duration) }, "POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Type: application/grpc\r\nGrpc-Timeout: 1500m\r\nContent-Length: 0\r\n\r\n", 200, 1500 * time.Millisecond, "timeout", "UT", 1},
		{"grpc-timeout, bounded", func(e *env) { most := time.Second; e.route.Action.MaxGRPCTimeout = &most }, "POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n", 200, time.Second, "timeout", "UT", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEnv(t)
				tt.change(e)
				e.serve(hostA, func(s *server) { _, _ = io.Copy(io.Discard, s.br) }) // never answers
				e.start()
				c := e.client()
				began := time.Now()
				c.send(tt.request)
				r, _ := c.response("GET")
				if d := time.Since(began).Round(time.Millisecond); r.StatusCode != tt.status || d != tt.after {
					t.Errorf("%d after %v, want %d after %v", r.StatusCode, d, tt.status, tt.after)
				}
				if r.StatusCode == 200 && (r.Header.Get("Grpc-Status") != "14" || r.Header.Get("Grpc-Message") == "") {
					t.Errorf("not a gRPC answer: %v", r.Header)
				}
				e.record(c, "reason", tt.reason, "flags", tt.flags, "tries", tt.tries)
			})
		})
	}
}

// The time-out of a try ends when the response begins, and covers connecting.
func TestTryTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.route.Action.Retry = &resource.RetryPolicy{Max: 1, On: resource.Retry5xx, PerTryTimeout: time.Second}
		e.endpoints(hostA, hostB)
		e.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == hostA {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return e.net.Dial(ctx, network, addr)
		}
		e.serve(hostB, func(s *server) {
			for {
				if _, err := s.head(); err != nil {
					return
				}
				s.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
				time.Sleep(5 * time.Second) //rule:allow the bubble's clock
				s.say("ok")
			}
		})
		e.start()
		c := e.client()
		for range 2 { // one of them at least meets the endpoint that does not connect
			c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
			if r, body := c.response("GET"); r.StatusCode != 200 || body != "ok" {
				t.Errorf("%d %q", r.StatusCode, body)
			}
		}
		if s := e.proxy.Status(); s.Retries < 1 || s.Retries > 2 {
			t.Errorf("%d retries", s.Retries)
		}
	})
}

// A response that has begun cannot become a 504: it is cut off.
func TestTimeoutInsideABody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.route.Action.Timeout = 3 * time.Second
		e.serve(hostA, func(s *server) {
			if _, err := s.head(); err == nil {
				s.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
				_, _ = io.Copy(io.Discard, s.br)
			}
		})
		e.start()
		c := e.client()
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
		if got, err := c.all(); err == nil || !strings.HasSuffix(got, "half") {
			t.Errorf("%q, %v", got, err)
		}
		e.record(c, "reason", "timeout", "status", 200)
	})
}

// The time-out counts from the end of the request, as Envoy's does, and a
// stream that moves is not idle.
func TestTimeoutStartsAfterTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.route.Action.Timeout = 3 * time.Second
		e.route.Action.IdleTimeout = 3 * time.Second
		e.answer(hostA, mirror)
		e.start()
		c := e.client()
		c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 5\r\n\r\n")
		for range 5 {
			time.Sleep(2 * time.Second) //rule:allow the bubble's clock
			c.send("x")
		}
		if r, body := c.response("POST"); r.StatusCode != 200 {
			t.Errorf("%d %s", r.StatusCode, body)
		}
		e.record(c, "reason", "")
	})
}
