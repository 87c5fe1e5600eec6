// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	echoID   = "spiffe://cluster.local/ns/testing/sa/echo"
	echoName = "outbound|80||echo.testing"
	hostA    = "10.0.0.1:8080"
	hostB    = "10.0.0.2:8080"
	vip      = "10.96.0.10:80"
)

// An env is a proxy with a mesh of one service around it.
type env struct {
	t       testing.TB
	net     *upstreamtest.Net
	ca      *upstreamtest.Authority
	cfg     httpproxy.Config
	proxy   *httpproxy.Proxy
	tel     *telemetry.Telemetry
	access  bytes.Buffer
	manager *resource.HTTPManager
	cluster *resource.Cluster
	route   *resource.Route
	routes  *resource.RouteConfiguration
	more    []*resource.Cluster
	dst     netip.AddrPort
	ctx     context.Context
	cancel  context.CancelFunc
	ids     *identity.Store
	dial    upstream.DialFunc
	wg      sync.WaitGroup
}

// istiodRetry is the policy that istiod puts on every route.
func istiodRetry() *resource.RetryPolicy {
	return &resource.RetryPolicy{
		Max: 2, Statuses: []int{503}, PreviousHosts: true, HostAttempts: 5,
		On: resource.RetryConnectFailure | resource.RetryRefusedStream | resource.RetryGRPCUnavailable |
			resource.RetryGRPCCancelled | resource.RetryRetriableStatusCodes,
	}
}

// newEnv makes a mesh whose service echo.testing has mutual TLS. The test may
// change it before start.
func newEnv(t testing.TB) *env {
	t.Helper()
	e := &env{t: t, net: upstreamtest.NewNet(), ca: upstreamtest.NewAuthority(t), dst: netip.MustParseAddrPort(vip)}
	e.dial = e.net.Dial
	e.cluster = &resource.Cluster{
		Name: echoName, Transport: resource.Transport{
			Kind: resource.IstioMTLS, SNI: "outbound_.80_._.echo.testing", SANs: []resource.SANMatch{{Exact: echoID}},
			ALPN: []string{"istio-peer-exchange", "istio"},
		},
		Balance: resource.BalanceConfig{Policy: resource.RoundRobin},
	}
	e.endpoints(hostA)
	e.route = &resource.Route{
		Name: "default", Match: resource.RouteMatch{Prefix: "/", CaseSensitive: true, Fraction: 1e6},
		Action: &resource.RouteAction{Clusters: []resource.WeightedCluster{{Name: echoName, Weight: 1}}},
	}
	e.routes = &resource.RouteConfiguration{Name: "80", IgnorePort: true, VirtualHosts: []*resource.VirtualHost{{
		Name: "echo.testing:80", Domains: []string{"echo.testing", "10.96.0.10"}, Routes: []*resource.Route{e.route},
	}}}
	e.manager = &resource.HTTPManager{RouteName: "80", IstioALPN: true, GenerateReqID: true, Upgrades: []string{"websocket"}}
	return e
}

func (e *env) endpoints(addrs ...string) {
	l := resource.Locality{}
	for _, a := range addrs {
		l.Endpoints = append(l.Endpoints, &resource.Endpoint{Address: netip.MustParseAddrPort(a), Weight: 1})
	}
	e.cluster.Endpoints = &resource.Endpoints{Name: e.cluster.Name, Localities: []resource.Locality{l}}
}

func (e *env) start() *env {
	e.t.Helper()
	c := catalog.New()
	c.SetClusters(append(e.more, e.cluster), nil)
	c.SetListeners([]*resource.Listener{{
		Name: "0.0.0.0_80", Addresses: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:80")}, Outbound: true,
		Default: &resource.FilterChain{HTTP: e.manager},
	}}, nil)
	c.SetRoutes([]*resource.RouteConfiguration{e.routes}, nil)
	c.SetNames(&resource.NameTable{Names: map[string]*resource.Name{
		"echo.testing": {Host: "echo.testing", Addresses: []netip.Addr{netip.MustParseAddrPort(vip).Addr()}},
	}})
	c.Publish()
	var err error
	e.tel, err = telemetry.New(telemetry.Config{Access: &e.access, AccessFormat: "json"})
	if err != nil {
		e.t.Fatal(err)
	}
	if e.ids == nil {
		e.ids = e.ca.Store(0)
	}
	m := upstream.New(upstream.Config{Identity: e.ids, Dial: e.dial})
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(e.t.Context()))
	e.wg.Go(func() {
		if err := m.Run(e.ctx); err != nil {
			e.t.Error(err)
		}
	})
	e.t.Cleanup(func() { e.cancel(); e.wg.Wait() })
	e.cfg.Catalog, e.cfg.Upstream, e.cfg.Telemetry = c, m, e.tel
	e.proxy = httpproxy.New(e.cfg)
	return e
}

// client opens a connection through the proxy.
func (e *env) client() *client {
	e.t.Helper()
	near, far := upstreamtest.Pipe()
	c := &client{t: e.t, Conn: near, br: bufio.NewReader(near), done: make(chan struct{})}
	e.wg.Go(func() {
		defer close(c.done)
		e.proxy.Serve(e.ctx, far, httpproxy.Downstream{Manager: e.manager, Src: netip.MustParseAddrPort("192.0.2.77:5555"), Dst: e.dst})
	})
	e.t.Cleanup(func() { near.Abort(); <-c.done })
	return c
}

// records returns what was recorded so far.
func (e *env) records() []map[string]any {
	e.t.Helper()
	e.tel.Flush()
	var all []map[string]any
	for line := range strings.Lines(e.access.String()) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			e.t.Fatalf("%v in %q", err, line)
		}
		all = append(all, r)
	}
	return all
}

// record waits for the connection's end, and expects one record with these
// fields, given as pairs.
func (e *env) record(c *client, want ...any) {
	e.t.Helper()
	_ = c.Close()
	<-c.done
	all := e.records()
	if len(all) != 1 {
		e.t.Errorf("%d records, want 1: %v", len(all), all)
		return
	}
	for i := 0; i < len(want); i += 2 {
		got := all[0][want[i].(string)]
		if f, ok := got.(float64); ok {
			got = int(f)
		}
		if got == nil {
			got = "" // what is empty is left out
		}
		if got != want[i+1] {
			e.t.Errorf("record has %s=%v, want %v: %v", want[i], got, want[i+1], all[0])
		}
	}
}

// A client is a raw connection to the proxy.
type client struct {
	*upstreamtest.Conn
	t    testing.TB
	br   *bufio.Reader
	done chan struct{}
}

func (c *client) send(s string) *client {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Errorf("send: %v", err)
	}
	return c
}

// all reads to the end of the connection.
func (c *client) all() (string, error) {
	b, err := io.ReadAll(c.br)
	return string(b), err
}

// expect reads just as much as is wanted.
func (c *client) expect(want string) {
	c.t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c.br, b); err != nil || string(b) != want {
		c.t.Fatalf("got %q (%v), want %q", b[:n], err, want)
	}
}

// response reads one response.
func (c *client) response(method string) (*http.Response, string) {
	c.t.Helper()
	r, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("response: %v", err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatalf("body after %q: %v", b, err)
	}
	return r, string(b)
}

// A server is a raw connection at an endpoint.
type server struct {
	net.Conn
	br *bufio.Reader
}

// head reads a request's head.
func (s *server) head() (string, error) {
	var b strings.Builder
	for {
		line, err := s.br.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

func (s *server) say(text string) { _, _ = io.WriteString(s.Conn, text) }

// raw is the socket under TLS.
func (s *server) raw() *upstreamtest.Conn {
	if t, ok := s.Conn.(*tls.Conn); ok {
		return t.NetConn().(*upstreamtest.Conn)
	}
	return s.Conn.(*upstreamtest.Conn)
}

// serve runs f on each connection to an endpoint, which has mutual TLS. What f
// leaves open is closed at the end of the test.
func (e *env) serve(addr string, f func(*server)) {
	e.accept(e.net.Listen(addr), func(c net.Conn) {
		s := tls.Server(c, e.ca.Server(echoID, "http/1.1"))
		defer s.Close()
		if s.HandshakeContext(context.WithoutCancel(e.t.Context())) == nil {
			f(&server{Conn: s, br: bufio.NewReader(s)})
		}
	})
}

func (e *env) accept(l net.Listener, f func(net.Conn)) {
	e.t.Helper()
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
	e.t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// answer serves requests one after the other: f gets the head and returns the
// whole response.
func (e *env) answer(addr string, f func(head string, s *server) string) {
	e.serve(addr, func(s *server) {
		for {
			head, err := s.head()
			if err != nil {
				return
			}
			s.say(f(head, s))
		}
	})
}

// mirror answers with the request's head as it arrived.
func mirror(head string, s *server) string {
	if n := contentLength(head); n > 0 {
		if _, err := io.CopyN(io.Discard, s.br, int64(n)); err != nil {
			return ""
		}
	}
	return ok(head)
}

func contentLength(head string) int {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil {
		return 0
	}
	return int(r.ContentLength)
}

func ok(body string) string {
	return "HTTP/1.1 200 OK\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// h2serve serves HTTP/2 with mutual TLS at an endpoint.
func (e *env) h2serve(addr string, h http.Handler) {
	e.t.Helper()
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetHTTP1(true)
	l := tls.NewListener(e.net.Listen(addr), e.ca.Server(echoID, "h2", "http/1.1"))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			e.t.Error(err)
		}
	})
	e.t.Cleanup(func() { _ = srv.Close(); wg.Wait() })
}

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReader(c) }

// serveWith serves one connection with a Downstream of the test's own.
func (e *env) serveWith(in httpproxy.Downstream) (near *upstreamtest.Conn, done chan struct{}) {
	near, far := upstreamtest.Pipe()
	done = make(chan struct{})
	e.wg.Go(func() {
		defer close(done)
		e.proxy.Serve(e.ctx, far, in)
	})
	e.t.Cleanup(func() { near.Abort(); <-done })
	return near, done
}

// plain answers at an endpoint without TLS.
func plain(e *env, l net.Listener, f func(head string, s *server) string) {
	e.accept(l, func(c net.Conn) {
		s := &server{Conn: c, br: bufio.NewReader(c)}
		for {
			head, err := s.head()
			if err != nil {
				return
			}
			s.say(f(head, s))
		}
	})
}

// readBody reads the body of a request whose head was read.
func readBody(s *server, head string) (int, error) {
	r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), s.br)))
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, r.Body)
	return int(n), err
}
