// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// tcpConn is a socket as the proxy's client.
type tcpConn struct{ *net.TCPConn }

func (c tcpConn) OnReset(func()) {}
func (c tcpConn) Abort()         { _ = c.SetLinger(0); _ = c.Close() }

// A wireServer answers requests with the least work, so that what is measured
// is what lies before it.
func wireServer(c net.Conn, answer []byte) {
	br := bufio.NewReaderSize(c, 64<<10)
	for {
		length := 0
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) <= 2 {
				break
			}
			if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				length, _ = strconv.Atoi(strings.TrimSpace(string(v)))
			}
		}
		if _, err := br.Discard(length); err != nil {
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// load makes n requests over each of the connections and returns how long it
// took. The answers are of one size, so that they need no parsing.
func load(b *testing.B, conns []net.Conn, n int, request []byte, size int) time.Duration {
	b.Helper()
	began := time.Now()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			buf := make([]byte, size)
			for range n/len(conns) + 1 {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// BenchmarkRequests measures requests through the proxy over loopback with
// mutual TLS to the endpoint, and reports the ratio to a client that makes the
// same requests over mutual TLS by itself (1: as fast). Allocations are those
// of proxy, client and server together, of which the latter two make none.
func BenchmarkRequests(b *testing.B) {
	for _, shape := range []struct {
		name         string
		request, got int
	}{{"GET5B", 0, 5}, {"GET16K", 0, 16 << 10}, {"POST64K", 64 << 10, 5}} {
		for _, conns := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/c%d", shape.name, conns), func(b *testing.B) {
				benchmark(b, conns, shape.request, shape.got)
			})
		}
	}
}

func benchmark(b *testing.B, conns, upload, size int) {
	e := newEnv(b)
	l := listen(b)
	e.endpoints(l.Addr().String())
	var d net.Dialer
	e.dial = d.DialContext
	e.ids = e.ca.Store(0)
	e.route.Action.Retry = istiodRetry()
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(size) + "\r\n\r\n" + strings.Repeat("x", size))
	cfg := e.ca.Server(echoID, "http/1.1")
	e.accept(l, func(c net.Conn) {
		s := tls.Server(c, cfg)
		defer s.Close()
		wireServer(s, answer)
	})
	e.start()

	request := []byte("GET / HTTP/1.1\r\nHost: echo.testing\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	if upload > 0 {
		request = []byte("POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: " + strconv.Itoa(upload) + "\r\n\r\n" + strings.Repeat("y", upload))
	}
	proxied, direct := proxyConns(b, e, conns), directConns(b, e, l.Addr().String(), conns)
	load(b, proxied, conns, request, len(answer)) // opens the upstream connections
	load(b, direct, conns, request, len(answer))
	b.ResetTimer()
	b.StopTimer()
	alone := load(b, direct, b.N, request, len(answer))
	b.ReportAllocs()
	b.StartTimer()
	through := load(b, proxied, b.N, request, len(answer))
	b.StopTimer()
	b.ReportMetric(float64(alone)/float64(through), "x-direct")
	b.ReportMetric(float64(b.N)/through.Seconds(), "req/s")
}

func listen(b *testing.B) net.Listener {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func dial(b *testing.B, addr string) net.Conn {
	b.Helper()
	var d net.Dialer
	c, err := d.DialContext(b.Context(), "tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}

func proxyConns(b *testing.B, e *env, n int) []net.Conn {
	b.Helper()
	l := listen(b)
	e.accept(l, func(c net.Conn) {
		e.proxy.Serve(e.ctx, tcpConn{c.(*net.TCPConn)}, httpproxy.Downstream{Manager: e.manager, Dst: e.dst})
	})
	var conns []net.Conn
	for range n {
		conns = append(conns, dial(b, l.Addr().String()))
	}
	return conns
}

func directConns(b *testing.B, e *env, addr string, n int) []net.Conn {
	b.Helper()
	cfg, err := e.ids.Client(identity.Peer{SNI: "x", ALPN: []string{"http/1.1"}})
	if err != nil {
		b.Fatal(err)
	}
	var conns []net.Conn
	for range n {
		conns = append(conns, tls.Client(dial(b, addr), cfg))
	}
	return conns
}

// BenchmarkNewConnections measures a connection a request, as by a client that
// sends Connection: close. The connection upstream is kept.
func BenchmarkNewConnections(b *testing.B) {
	e := newEnv(b)
	l := listen(b)
	e.endpoints(l.Addr().String())
	var d net.Dialer
	e.dial = d.DialContext
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	cfg := e.ca.Server(echoID, "http/1.1")
	e.accept(l, func(c net.Conn) {
		s := tls.Server(c, cfg)
		defer s.Close()
		wireServer(s, answer)
	})
	e.start()
	front := listen(b)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				e.proxy.Serve(e.ctx, tcpConn{c.(*net.TCPConn)}, httpproxy.Downstream{Manager: e.manager, Dst: e.dst})
			})
		}
	})
	b.Cleanup(func() { _ = front.Close(); wg.Wait() })
	b.ReportAllocs()
	for b.Loop() {
		c, err := d.DialContext(b.Context(), "tcp", front.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: echo.testing\r\nConnection: close\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
	if s := e.cfg.Upstream.Status(); s.Dials > 2 {
		b.Errorf("%d upstream connections", s.Dials)
	}
}
