// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

func lease1(t testing.TB, m *upstream.Manager, c *resource.Cluster) *upstream.H1 {
	t.Helper()
	l, err := m.HTTP(t.Context(), upstream.HTTPRequest{Target: pick(t, m, c), IstioALPN: true})
	if err != nil {
		t.Fatal(err)
	}
	if l.H1 == nil {
		t.Fatal("no HTTP/1 connection")
	}
	return l.H1
}

func TestPoolReusesTheLastOne(t *testing.T) {
	network := upstreamtest.NewNet()
	m := start(t, upstream.Config{Dial: network.Dial})
	serve(t, network.Listen(echoAddr), func(c net.Conn) { hello(c, 100); _ = c.Close() })
	c := cluster("echo", resource.Transport{}, echoAddr)
	a, b := lease1(t, m, c), lease1(t, m, c)
	exchange(t, a)
	exchange(t, b)
	if got := lease1(t, m, c); got != b || !got.Reused {
		t.Error("did not get the connection used last")
	} else {
		exchange(t, got)
	}
	if s := m.Status(); s.Dials != 2 || s.Reused != 1 || s.Idle != 2 {
		t.Errorf("%+v", s)
	}
}

// Two services behind one gateway address differ by SNI alone. nasp gave the
// connections of one to the other.
func TestPoolKeepsServicesApart(t *testing.T) {
	ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
	m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
	var mu sync.Mutex
	seen := map[string]int{}
	serveTLS(t, network.Listen(echoAddr), ca.Server(echoID, "http/1.1"), func(c *tls.Conn) {
		mu.Lock()
		seen[c.ConnectionState().ServerName]++
		mu.Unlock()
		hello(c, 100)
	})
	one := cluster("one", mtls("outbound_.80_._.one", echoID), echoAddr)
	two := cluster("two", mtls("outbound_.80_._.two", echoID), echoAddr)
	looser := cluster("one", mtls("outbound_.80_._.one"), echoAddr) // another set of accepted identities
	for range 3 {
		for _, c := range []*resource.Cluster{one, two, looser} {
			exchange(t, lease1(t, m, c))
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["outbound_.80_._.one"] != 2 || seen["outbound_.80_._.two"] != 1 {
		t.Errorf("connections by SNI: %v", seen)
	}
}

func TestPoolDropsTheDead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	serve(t, l, func(c net.Conn) { hello(c, 1); _ = c.Close(); closed <- struct{}{} })
	var d net.Dialer
	m := start(t, upstream.Config{Dial: d.DialContext})
	c := cluster("echo", resource.Transport{}, l.Addr().String())
	h := lease1(t, m, c)
	exchange(t, h)
	<-closed
	if got := lease1(t, m, c); got.Reused {
		t.Error("a connection that its server has closed was reused")
	} else {
		exchange(t, got)
	}
	<-closed
	if s := m.Status(); s.Stale != 1 || s.Dials != 2 {
		t.Errorf("%+v", s)
	}
}

func TestPoolEndsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := upstreamtest.NewNet()
		m := start(t, upstream.Config{Dial: network.Dial})
		serve(t, network.Listen(echoAddr), func(c net.Conn) { hello(c, 100); _ = c.Close() })
		c := cluster("echo", resource.Transport{}, echoAddr)
		c.MaxRequestsPerConnection = 2
		c.IdleTimeout = 20 * time.Second
		for range 4 {
			exchange(t, lease1(t, m, c))
		}
		if s := m.Status(); s.Dials != 2 || s.Open != 0 {
			t.Errorf("after two requests each: %+v", s)
		}
		exchange(t, lease1(t, m, c))
		time.Sleep(19 * time.Second) //rule:allow the bubble's clock
		if s := m.Status(); s.Idle != 1 || s.Pools != 1 {
			t.Errorf("before the idle time-out: %+v", s)
		}
		time.Sleep(15 * time.Second) //rule:allow the bubble's clock
		if s := m.Status(); s.Idle != 0 || s.Pools != 0 || s.Open != 0 {
			t.Errorf("after the idle time-out: %+v", s)
		}
	})
}

func TestRotationRetiresConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
		m := start(t, upstream.Config{Identity: ca.Store(time.Hour), Dial: network.Dial})
		serials := make(chan string, 8)
		serveTLS(t, network.Listen(echoAddr), ca.Server(echoID, "http/1.1"), func(c *tls.Conn) {
			serials <- c.ConnectionState().PeerCertificates[0].SerialNumber.String()
			hello(c, 100)
		})
		c := cluster("echo", mtls(echoSNI, echoID), echoAddr)
		c.IdleTimeout = 24 * time.Hour
		busy := lease1(t, m, c)
		exchange(t, lease1(t, m, c))
		old := <-serials
		<-serials
		time.Sleep(50 * time.Minute) //rule:allow the bubble's clock
		if s := m.Status(); s.Retired != 1 || s.Idle != 0 || s.Open != 1 {
			t.Errorf("after the renewal: %+v", s)
		}
		exchange(t, busy) // what is in flight ends in peace, and is not kept
		if s := m.Status(); s.Idle != 0 || s.Open != 0 {
			t.Errorf("after the last exchange: %+v", s)
		}
		exchange(t, lease1(t, m, c))
		if now := <-serials; now == old {
			t.Error("the new connection shows the old certificate")
		}
	})
}

// Where the cluster allows one connection, a second exchange waits for it, and
// a third is refused if only one may wait.
func TestHTTPBreakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := upstreamtest.NewNet()
		m := start(t, upstream.Config{Dial: network.Dial})
		for _, a := range []string{echoAddr, "10.0.0.2:8080"} {
			serve(t, network.Listen(a), func(c net.Conn) { hello(c, 100); _ = c.Close() })
		}
		c := cluster("echo", resource.Transport{}, echoAddr)
		c.Breakers = resource.Breakers{MaxConnections: 1, MaxPending: 1, MaxRequests: 3}
		first := lease1(t, m, c)
		var wg sync.WaitGroup
		wg.Go(func() { exchange(t, lease1(t, m, c)) })
		synctest.Wait() // it waits in line
		_, err := m.HTTP(t.Context(), upstream.HTTPRequest{Target: pick(t, m, c)})
		if reason(err) != "overload" {
			t.Errorf("third exchange: %v", err)
		}
		exchange(t, first)
		wg.Wait()
		if s := m.Status(); s.Dials != 1 || s.Overflows != 1 {
			t.Errorf("%+v", s)
		}

		// An idle connection of one endpoint makes room for another's.
		other := cluster("echo", resource.Transport{}, "10.0.0.2:8080")
		other.Breakers = c.Breakers
		h := lease1(t, m, other)
		if s := m.Status(); s.Evicted != 1 || s.Dials != 2 {
			t.Errorf("%+v", s)
		}

		// Who gives up waiting leaves the line to others.
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := m.HTTP(ctx, upstream.HTTPRequest{Target: pick(t, m, c)}); reason(err) != "client_gone" {
				t.Errorf("cancelled wait: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		wg.Go(func() { exchange(t, lease1(t, m, c)) })
		synctest.Wait()
		h.Discard()
		wg.Wait()
	})
}

func TestRequestBreaker(t *testing.T) {
	network := upstreamtest.NewNet()
	m := start(t, upstream.Config{Dial: network.Dial})
	serve(t, network.Listen(echoAddr), func(c net.Conn) { hello(c, 100); _ = c.Close() })
	c := cluster("echo", resource.Transport{}, echoAddr)
	c.Breakers.MaxRequests = 1
	h := lease1(t, m, c)
	if _, err := m.HTTP(t.Context(), upstream.HTTPRequest{Target: pick(t, m, c)}); reason(err) != "overload" {
		t.Errorf("second request: %v", err)
	}
	exchange(t, h)
	exchange(t, lease1(t, m, c))
}

// h2server serves HTTP/2 on connections of a network in memory.
func h2server(t *testing.T, l net.Listener, cfg *tls.Config, h http.Handler) {
	t.Helper()
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	if cfg != nil {
		srv.Protocols.SetHTTP2(true)
		srv.Protocols.SetHTTP1(true)
		l = tls.NewListener(l, cfg)
	}
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { _ = srv.Close(); wg.Wait() })
}

func get2(t *testing.T, l upstream.Lease) string {
	t.Helper()
	if l.H2 == nil {
		t.Fatal("no HTTP/2 stream")
	}
	defer l.H2.Done()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://echo/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.H2.RoundTrip(r)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestHTTP2SharesOneConnection(t *testing.T) {
	ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
	m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
	h2server(t, network.Listen(echoAddr), ca.Server(echoID, "h2"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	c := cluster("echo", mtls(echoSNI, echoID), echoAddr)
	for _, v := range []upstream.Version{upstream.HTTP2, upstream.Auto} {
		before := m.Status().Dials
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				l, err := m.HTTP(t.Context(), upstream.HTTPRequest{Target: pick(t, m, c), Version: v, IstioALPN: true})
				if err != nil {
					t.Error(err)
					return
				}
				if got := get2(t, l); got != "HTTP/2.0" {
					t.Errorf("answer %q", got)
				}
			})
		}
		wg.Wait()
		if n := m.Status().Dials - before; n != 1 {
			t.Errorf("version %v: %d dials for 20 streams", v, n)
		}
	}
}

func TestAutoFollowsALPN(t *testing.T) {
	ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
	m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
	serveTLS(t, network.Listen(echoAddr), ca.Server(echoID, "http/1.1"), func(c *tls.Conn) { hello(c, 100) })
	c := cluster("echo", mtls(echoSNI, echoID), echoAddr)
	for range 3 {
		l, err := m.HTTP(t.Context(), upstream.HTTPRequest{Target: pick(t, m, c), Version: upstream.Auto, IstioALPN: true})
		if err != nil || l.H1 == nil {
			t.Fatalf("%+v, %v", l, err)
		}
		exchange(t, l.H1)
	}
	if s := m.Status(); s.Dials != 1 {
		t.Errorf("%+v", s)
	}
}

// All who wait for one dial share its failure: with ten waiting, none waits
// for ten time-outs.
func TestHTTP2DialFailureIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int64
		m := start(t, upstream.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		c := cluster("echo", resource.Transport{}, echoAddr)
		c.ConnectTimeout = time.Second
		began := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := m.HTTP(t.Context(), upstream.HTTPRequest{Target: pick(t, m, c), Version: upstream.HTTP2}); reason(err) != "timeout" {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		if time.Since(began) != time.Second || dials.Load() != 1 {
			t.Errorf("%d dials in %v", dials.Load(), time.Since(began))
		}
	})
}

// As many requests as run at once find a connection the next time too: a bound
// below their number would cost each a handshake.
func TestPoolKeepsWhatABurstNeeds(t *testing.T) {
	network := upstreamtest.NewNet()
	m := start(t, upstream.Config{Dial: network.Dial})
	serve(t, network.Listen(echoAddr), func(c net.Conn) { hello(c, 100); _ = c.Close() })
	c := cluster("echo", resource.Transport{}, echoAddr)
	const burst = 2500
	for range 2 {
		leases := make([]*upstream.H1, burst)
		for i := range leases {
			leases[i] = lease1(t, m, c)
		}
		for _, l := range leases {
			exchange(t, l)
		}
	}
	if s := m.Status(); s.Dials != burst || s.Reused != burst || s.Evicted != 0 {
		t.Errorf("%+v", s)
	}
}
