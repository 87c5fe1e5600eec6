// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	echoID   = "spiffe://cluster.local/ns/testing/sa/echo"
	echoAddr = "10.0.0.1:8080"
	echoSNI  = "outbound_.80_._.echo.testing.svc.cluster.local"
)

// start makes a manager that runs until the test ends.
func start(t testing.TB, cfg upstream.Config) *upstream.Manager {
	t.Helper()
	m := upstream.New(cfg)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m
}

func mtls(sni string, sans ...string) resource.Transport {
	tr := resource.Transport{Kind: resource.IstioMTLS, Name: "tlsMode-istio", SNI: sni, ALPN: []string{"istio-peer-exchange", "istio"}}
	for _, s := range sans {
		tr.SANs = append(tr.SANs, resource.SANMatch{Exact: s})
	}
	return tr
}

// cluster is a static cluster of endpoints that all have one transport.
func cluster(name string, tr resource.Transport, addrs ...string) *resource.Cluster {
	l := resource.Locality{}
	for _, a := range addrs {
		l.Endpoints = append(l.Endpoints, &resource.Endpoint{Address: netip.MustParseAddrPort(a), Weight: 1})
	}
	return &resource.Cluster{
		Name: name, Transport: tr,
		Endpoints: &resource.Endpoints{Name: name, Localities: []resource.Locality{l}},
	}
}

func pick(t testing.TB, m *upstream.Manager, c *resource.Cluster) upstream.Target {
	t.Helper()
	target, err := m.Pick(t.Context(), c, balance.New(c), netip.AddrPort{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// serve accepts connections until the test ends, and hands each to f on a
// goroutine. At the end it closes those that are left.
func serve(t testing.TB, l net.Listener, f func(net.Conn)) {
	t.Helper()
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() { f(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// serveTLS is serve behind a handshake.
func serveTLS(t testing.TB, l net.Listener, cfg *tls.Config, f func(*tls.Conn)) {
	t.Helper()
	serve(t, l, func(c net.Conn) {
		s := tls.Server(c, cfg)
		defer s.Close()
		if s.HandshakeContext(context.WithoutCancel(t.Context())) == nil {
			f(s)
		}
	})
}

func echo(c *tls.Conn) { _, _ = io.Copy(c, c); _ = c.CloseWrite() }

func reason(err error) string { return upstream.ReasonOf(err, "none") }

// hello answers every request of an HTTP/1 connection.
func hello(c io.ReadWriter, n int) {
	buf := make([]byte, 4096)
	for range n {
		if _, err := c.Read(buf); err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
			return
		}
	}
}

// exchange makes one request on a lease and gives the connection back.
func exchange(t testing.TB, h *upstream.H1) {
	t.Helper()
	if _, err := io.WriteString(h, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(h.R, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != "hello" {
		t.Fatalf("body %q, %v", b, err)
	}
	h.Put()
}
