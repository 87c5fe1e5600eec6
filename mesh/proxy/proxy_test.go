// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const vip = "10.96.0.10:9000"

var (
	echo        = static("outbound|9000||echo", "10.0.0.1:9000")
	echoOnVIP   = listener(vip, tcpChain(to("outbound|9000||echo")))
	passthrough = &resource.Cluster{Name: "PassthroughCluster", Discovery: resource.OriginalDst}
	blackhole   = static("BlackHoleCluster")
	allowAny    = virtual(tcpChain(to("PassthroughCluster")))
	registry    = virtual(tcpChain(to("BlackHoleCluster")))
	allow       = func(c *proxy.Config) { c.OutsideAllow = true }
)

func TestWhereAFlowGoes(t *testing.T) {
	hbone := static("outbound|9000||echo", "10.0.0.1:9000")
	hbone.Endpoints.Localities[0].Endpoints[0].Tunnel = "connect_originate"
	headless := &resource.Cluster{Name: "outbound|9000||echo", Discovery: resource.OriginalDst}
	other := &resource.Cluster{Name: "outbound|9001||other", Discovery: resource.OriginalDst}
	filtered := listener(vip, &resource.FilterChain{Refused: "network filter envoy.filters.network.rbac"})
	narrow := listener(vip, &resource.FilterChain{Match: resource.ChainMatch{DestinationPort: 1}, TCP: to("outbound|9000||echo")})

	for _, tt := range []struct {
		name   string
		set    []any
		change func(*proxy.Config)
		dst    string
		dial   string // what is dialled; empty: nothing is
		reason string
	}{
		{"a service", []any{echo, echoOnVIP}, nil, vip, "mesh tcp 10.0.0.1:9000", ""},
		{"a service, as IPv4 in IPv6", []any{echo, echoOnVIP}, nil, "[::ffff:10.96.0.10]:9000", "mesh tcp 10.0.0.1:9000", ""},
		{"a headless service", []any{headless, echoOnVIP}, nil, vip, "mesh tcp " + vip, ""},
		{"a headless service, as IPv4 in IPv6", []any{headless, echoOnVIP}, nil, "[::ffff:10.96.0.10]:9000", "mesh tcp " + vip, ""},
		{"outside, ALLOW_ANY", []any{passthrough, allowAny}, nil, "192.0.2.1:22", "outside tcp 192.0.2.1:22", ""},
		{"outside, no policy", []any{echo, echoOnVIP}, nil, "192.0.2.1:22", "outside tcp 192.0.2.1:22", ""},
		{"outside, REGISTRY_ONLY", []any{blackhole, registry}, nil, "192.0.2.1:22", "", "blackhole"},
		{"outside, REGISTRY_ONLY, --outside=allow", []any{blackhole, registry}, allow, "192.0.2.1:22", "outside tcp 192.0.2.1:22", ""},

		// Nothing of the mesh leaves in clear by another way.
		{"another port of a service", []any{echo, echoOnVIP, passthrough, allowAny}, nil, "10.96.0.10:9001", "", "unrouted"},
		{"another port, no policy", []any{echo, echoOnVIP}, nil, "10.96.0.10:9001", "", "unrouted"},
		{"another port, --outside=allow", []any{echo, echoOnVIP, blackhole, registry}, allow, "10.96.0.10:9001", "", "blackhole"},
		{
			"another service's address, by a headless service of the whole port",
			[]any{echo, echoOnVIP, other, listener("0.0.0.0:9001", tcpChain(to(other.Name)))},
			nil, "10.96.0.10:9001", "", "unrouted",
		},
		{
			"an address outside, by a service of the whole port",
			[]any{echo, echoOnVIP, other, listener("0.0.0.0:9001", tcpChain(to(other.Name)))},
			nil, "192.0.2.1:9001", "mesh tcp 192.0.2.1:9001", "",
		},
		{"an endpoint that wants HBONE", []any{hbone, echoOnVIP}, nil, vip, "", "transport_unsupported"},
		{
			"a headless pod of an ambient mesh, for which xDS says clear text",
			[]any{headless, echoOnVIP, &resource.Workload{UID: "u", Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, HBONE: true}},
			nil, vip, "", "transport_unsupported",
		},

		{"no endpoint", []any{static("outbound|9000||echo"), echoOnVIP}, nil, vip, "", "no_endpoint"},
		{"no cluster", []any{echoOnVIP}, nil, vip, "", "no_cluster"},
		{"no cluster named", []any{listener(vip, tcpChain(to()))}, nil, vip, "", "no_cluster"},
		{"no chain", []any{echo, narrow}, nil, vip, "", "no_chain"},
		{"a filter that is not known", []any{echo, filtered}, nil, vip, "", "refused_filter"},
		{"before the first Snapshot", nil, func(c *proxy.Config) { c.Catalog = catalog.New() }, vip, "", "not_ready"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.change, tt.set...)
			f := r.connect(tt.dst)
			if tt.dial == "" {
				<-f.rejected
				r.expectReason(tt.reason)
				r.expectEvents("reject")
				return
			}
			server := <-r.servers
			send(t, f.client, "ping")
			expect(t, server, "ping")
			send(t, server, "pong")
			expect(t, f.client, "pong")
			server.Close()
			expectEnd(t, f.client, io.EOF)
			f.client.Close()
			r.expectReason("")
			if got := r.log.all()[:2]; got[0] != "dial "+tt.dial || got[1] != "accept" {
				t.Errorf("events begin with %v", got)
			}
		})
	}
}

func TestWeightsDecideTheCluster(t *testing.T) {
	split := &resource.TCPProxy{Clusters: []resource.WeightedCluster{{Name: "a", Weight: 0}, {Name: "b", Weight: 5}}}
	r := newRig(t, nil, static("a", "10.0.0.1:1"), static("b", "10.0.0.2:2"), listener(vip, tcpChain(split)))
	for range 20 {
		f := r.connect(vip)
		(<-r.servers).Close()
		f.client.Close()
	}
	for _, m := range r.records() {
		if m["upstream"] != "10.0.0.2:2" {
			t.Errorf("went to %v", m["upstream"])
		}
	}
}

func TestRefusedDialLooksRefused(t *testing.T) {
	r := newRig(t, nil, echo, echoOnVIP)
	r.dialErr = errRefused
	f := r.connect(vip)
	<-f.rejected
	r.expectReason("connect")
	r.expectEvents("dial mesh tcp 10.0.0.1:9000", "reject")
}

func TestDialTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := static("outbound|9000||echo", "10.0.0.1:9000")
		slow.ConnectTimeout = 3 * time.Second
		r := newRig(t, nil, slow, echoOnVIP)
		r.hang = true
		start := time.Now()
		f := r.connect(vip)
		<-f.rejected
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("refused after %v", took)
		}
		r.expectReason("timeout")
	})
}

func TestClientGivesUpDuringDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		r.hang = true
		f := r.connect(vip)
		synctest.Wait()
		close(f.done)
		r.expectReason("client_gone")
		r.expectEvents("dial mesh tcp 10.0.0.1:9000", "reject")
	})
}

func TestClientGoneAtAccept(t *testing.T) {
	r := newRig(t, nil, echo, echoOnVIP)
	f := &flow{dst: netip.MustParseAddrPort(vip), done: make(chan struct{}), log: &r.log, acceptErr: errors.New("handshake timed out")}
	r.proxy.ServeTCP(t.Context(), f)
	r.expectReason("client_gone")
	r.expectEvents("dial mesh tcp 10.0.0.1:9000", "accept", "server abort")
	expectEnd(t, <-r.servers, syscall.ECONNRESET)
}

// opened returns both ends of a flow that is relayed.
func opened(t *testing.T, r *rig) (client, server *memConn) {
	t.Helper()
	f := r.connect(vip)
	server = <-r.servers
	send(t, f.client, "hello")
	expect(t, server, "hello")
	return f.client, server
}

func TestHalfClose(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func(client, server *memConn) (closing, other *memConn)
	}{
		{"by the client", func(c, s *memConn) (*memConn, *memConn) { return c, s }},
		{"by the server", func(c, s *memConn) (*memConn, *memConn) { return s, c }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil, echo, echoOnVIP)
			client, server := opened(t, r)
			closing, other := tt.first(client, server)
			send(t, closing, "last words")
			if err := closing.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			expect(t, other, "last words")
			expectEnd(t, other, io.EOF)
			// The other direction lives on, and for long.
			for range 100 {
				send(t, other, "more")
				expect(t, closing, "more")
			}
			other.Close()
			expectEnd(t, closing, io.EOF)
			closing.Close()
			r.expectReason("")
		})
	}
}

func TestResets(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		client, server := opened(t, r)
		client.Abort()
		expectEnd(t, server, syscall.ECONNRESET)
		r.expectReason("client_gone")
	})
	t.Run("by the server", func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		client, server := opened(t, r)
		server.Abort()
		expectEnd(t, client, syscall.ECONNRESET)
		r.expectReason("upstream_reset")
	})
	t.Run("by the client, which has closed half before", func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		client, server := opened(t, r)
		_ = client.CloseWrite()
		expectEnd(t, server, io.EOF)
		client.Abort()
		expectEnd(t, server, syscall.ECONNRESET)
		r.expectReason("client_gone")
	})
	t.Run("by the client, while the server does not read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, echo, echoOnVIP)
			client, server := opened(t, r)
			go func() { _, _ = client.Write(make([]byte, 4*window)) }()
			synctest.Wait() // both windows are full, the relay waits in Write
			client.Abort()
			r.expectReason("client_gone")
			expectEnd(t, server, syscall.ECONNRESET)
		})
	})
	t.Run("by the server, while the client does not read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, echo, echoOnVIP)
			client, server := opened(t, r)
			go func() { _, _ = server.Write(make([]byte, 4*window)) }()
			synctest.Wait()
			server.Abort()
			send(t, client, "anyone there?") // by which the relay learns of it
			synctest.Wait()
			client.Close()
			r.expectReason("upstream_reset")
		})
	})
}

// A server may answer and close without reading all of the request, as HTTP
// servers do with 413. The answer must arrive.
func TestServerClosesWhileTheClientSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		client, server := opened(t, r)
		send(t, server, "too large")
		_ = server.CloseWrite()
		synctest.Wait()
		server.Close()
		send(t, client, "more of it") // is answered by a reset on the upstream side
		expect(t, client, "too large")
		expectEnd(t, client, io.EOF)
		client.Close()
		r.running.Wait()
	})
}

// The same, where the answer is still on its way when the client's words fail.
func TestServerClosesBehindALongAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		client, server := opened(t, r)
		answer := strings.Repeat("0123456789", 25_000) // more than one window, less than two
		send(t, server, answer)
		server.Close()
		synctest.Wait() // the relay waits for the client to read
		send(t, client, "more of it")
		synctest.Wait()
		expect(t, client, answer)
		expectEnd(t, client, io.EOF)
		client.Close()
		r.expectReason("upstream_reset")
	})
}

// A flow is load on its endpoint while it lives.
func TestLoadOfAnEndpoint(t *testing.T) {
	mesh := published(t, echo, echoOnVIP)
	r := newRig(t, func(c *proxy.Config) { c.Catalog = mesh })
	host := mesh.Snapshot().Cluster(echo.Name).LB.Hosts()[0]
	client, server := opened(t, r)
	if n := host.Active(); n != 1 {
		t.Errorf("load of an open flow: %d", n)
	}
	client.Close()
	server.Close()
	r.expectReason("")
	r.dialErr = errRefused
	<-r.connect(vip).rejected
	r.running.Wait()
	if n := host.Active(); n != 0 {
		t.Errorf("load after the end: %d", n)
	}
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, echo, echoOnVIP)
		ctx, cancel := context.WithCancel(t.Context())
		f := r.connectContext(ctx, vip)
		server := <-r.servers
		synctest.Wait()
		cancel()
		expectEnd(t, f.client, syscall.ECONNRESET)
		expectEnd(t, server, syscall.ECONNRESET)
		r.expectReason("drained")
	})
	t.Run("while dialling", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, echo, echoOnVIP)
			r.hang = true
			ctx, cancel := context.WithCancel(t.Context())
			f := r.connectContext(ctx, vip)
			synctest.Wait()
			cancel()
			<-f.rejected
			r.expectReason("drained")
		})
	})
}

func TestTimeLimits(t *testing.T) {
	limited := func(change func(*resource.TCPProxy)) *resource.Listener {
		p := to("outbound|9000||echo")
		change(p)
		return listener(vip, tcpChain(p))
	}
	t.Run("none by default", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, echo, echoOnVIP)
			client, server := opened(t, r)
			time.AfterFunc(30*24*time.Hour, func() {
				send(t, server, "still here")
				server.Close()
			})
			expect(t, client, "still here")
			client.Close()
			r.expectReason("")
		})
	})
	t.Run("idle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, echo, limited(func(p *resource.TCPProxy) { p.IdleTimeout = time.Minute }))
			start := time.Now()
			client, server := opened(t, r)
			for i := range 3 { // each direction keeps it alive
				from, to := client, server
				if i%2 == 0 {
					from, to = server, client
				}
				timer := time.AfterFunc(50*time.Second, func() { send(t, from, "x") })
				expect(t, to, "x")
				timer.Stop()
			}
			expectEnd(t, client, io.EOF)
			expectEnd(t, server, io.EOF)
			if took := time.Since(start); took != 150*time.Second+time.Minute {
				t.Errorf("ended after %v", took)
			}
			r.expectReason("idle")
		})
	})
	t.Run("duration", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, echo, limited(func(p *resource.TCPProxy) { p.MaxDuration = time.Minute }))
			start := time.Now()
			client, _ := opened(t, r)
			expectEnd(t, client, io.EOF)
			if took := time.Since(start); took != time.Minute {
				t.Errorf("ended after %v", took)
			}
			r.expectReason("max_duration")
		})
	})
}

func TestBytesArriveAndAreCounted(t *testing.T) {
	r := newRig(t, nil, echo, echoOnVIP)
	f := r.connect(vip)
	server := <-r.servers
	const size = 5<<20 + 12345
	data := make([]byte, size)
	_, _ = rand.Read(data)
	want := sha256.Sum256(data)
	sums := make(chan [32]byte, 2)
	for _, c := range []*memConn{f.client, server} {
		go func() {
			for rest, n := data, 1; len(rest) > 0; n = n*3%70001 + 1 { // pieces of all sizes
				n = min(n, len(rest))
				send(t, c, string(rest[:n]))
				rest = rest[n:]
			}
			_ = c.CloseWrite()
		}()
		go func() {
			h := sha256.New()
			_, _ = io.Copy(h, c)
			sums <- [32]byte(h.Sum(nil))
		}()
	}
	for range 2 {
		if got := <-sums; got != want {
			t.Error("the bytes differ")
		}
	}
	m := r.record()
	if m["bytes_in"] != float64(size) || m["bytes_out"] != float64(size) {
		t.Errorf("record says %v in, %v out", m["bytes_in"], m["bytes_out"])
	}
}
