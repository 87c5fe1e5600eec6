// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

func TestConnectMTLS(t *testing.T) {
	ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
	m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
	hellos := make(chan *tls.ClientHelloInfo, 1)
	cfg := ca.Server(echoID)
	choose := cfg.GetConfigForClient
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { hellos <- h; return choose(h) }
	peers := make(chan string, 1)
	serveTLS(t, network.Listen(echoAddr), cfg, func(c *tls.Conn) {
		peers <- c.ConnectionState().PeerCertificates[0].URIs[0].String()
		echo(c)
	})

	c, err := m.Connect(t.Context(), pick(t, m, cluster("echo", mtls(echoSNI, echoID), echoAddr)))
	if err != nil {
		t.Fatal(err)
	}
	if h := <-hellos; h.ServerName != echoSNI || !slices.Equal(h.SupportedProtos, []string{"istio"}) {
		t.Errorf("offered SNI %q and ALPN %v, want istio alone: a sidecar takes raw TCP by that", h.ServerName, h.SupportedProtos)
	}
	if c.PeerID() != echoID || c.Transport() != resource.IstioMTLS {
		t.Errorf("peer %q over %v", c.PeerID(), c.Transport())
	}
	if _, err := io.WriteString(c, "through"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "through" {
		t.Errorf("after the half-close got %q, %v", b, err)
	}
	if p := <-peers; p != upstreamtest.ClientID {
		t.Errorf("the server saw %s", p)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if s := m.Status(); s.Open != 0 || s.Dials != 1 {
		t.Errorf("status after the end: %+v", s)
	}
}

func TestConnectRefuses(t *testing.T) {
	other := upstreamtest.NewAuthority(t)
	for _, tt := range []struct {
		name      string
		transport resource.Transport
		addr      string
		setup     func(*testing.T, *upstreamtest.Authority, *upstream.Config)
		reason    string
		says      string
		dials     int
	}{
		{name: "wrong SAN", transport: mtls(echoSNI, "spiffe://cluster.local/ns/x/sa/y"), addr: echoAddr, reason: "tls_identity", says: echoID, dials: 1},
		{name: "foreign root", transport: mtls(echoSNI, echoID), addr: "10.0.0.2:8080", reason: "tls_identity", dials: 1},
		{name: "not TLS", transport: mtls(echoSNI, echoID), addr: "10.0.0.3:8080", reason: "tls", dials: 1},
		{name: "refused", transport: mtls(echoSNI, echoID), addr: "10.0.0.9:8080", reason: "connect", says: "10.0.0.9:8080", dials: 1},
		{
			name: "no identity", transport: mtls(echoSNI, echoID), addr: echoAddr, reason: "no_identity",
			setup: func(_ *testing.T, _ *upstreamtest.Authority, c *upstream.Config) { c.Identity = nil },
		},
		{name: "HBONE", transport: resource.Transport{Kind: resource.HBONE}, addr: echoAddr, reason: "transport_unsupported", says: "HBONE"},
		{name: "unsupported", transport: resource.Transport{Kind: resource.Unsupported, Name: "tlsMode-simple"}, addr: echoAddr, reason: "transport_unsupported", says: "tlsMode-simple"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
			cfg := upstream.Config{Identity: ca.Store(0), Dial: network.Dial}
			if tt.setup != nil {
				tt.setup(t, ca, &cfg)
			}
			m := start(t, cfg)
			serveTLS(t, network.Listen(echoAddr), ca.Server(echoID), echo)
			serveTLS(t, network.Listen("10.0.0.2:8080"), other.Server(echoID), echo)
			serve(t, network.Listen("10.0.0.3:8080"), func(c net.Conn) {
				_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
				_ = c.Close()
			})
			c, err := m.Connect(t.Context(), pick(t, m, cluster("echo", tt.transport, tt.addr)))
			if err == nil {
				c.Abort()
				t.Fatal("connected")
			}
			if reason(err) != tt.reason || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "echo") {
				t.Errorf("reason %s (%v), want %s naming %q and the cluster", reason(err), err, tt.reason, tt.says)
			}
			if n := len(network.Dials()); n != tt.dials {
				t.Errorf("%d dials, want %d", n, tt.dials)
			}
			if s := m.Status(); s.Open != 0 {
				t.Errorf("left open: %+v", s)
			}
		})
	}
}

// The connect timeout of the cluster covers the handshake of a peer that took
// the connection and then says nothing.
func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
		m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
		serve(t, network.Listen(echoAddr), func(c net.Conn) { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
		c := cluster("echo", mtls(echoSNI, echoID), echoAddr)
		c.ConnectTimeout = 3 * time.Second

		began := time.Now()
		_, err := m.Connect(t.Context(), pick(t, m, c))
		if reason(err) != "timeout" || time.Since(began) != 3*time.Second {
			t.Errorf("after %v: %s: %v", time.Since(began), reason(err), err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began = time.Now()
		if _, err = m.Connect(ctx, pick(t, m, c)); reason(err) != "client_gone" || time.Since(began) != time.Second {
			t.Errorf("cancelled after %v: %s: %v", time.Since(began), reason(err), err)
		}
	})
}

func TestTruncationIsNotAnEnd(t *testing.T) {
	ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
	m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
	how := make(chan string, 1)
	serveTLS(t, network.Listen(echoAddr), ca.Server(echoID), func(c *tls.Conn) {
		_, _ = io.WriteString(c, "half of the")
		switch raw := c.NetConn().(*upstreamtest.Conn); <-how {
		case "close_notify":
			_ = c.CloseWrite()
		case "FIN":
			_ = raw.CloseWrite()
		case "RST":
			raw.Abort()
		}
		_, _ = io.Copy(io.Discard, c)
	})
	for _, tt := range []struct {
		how  string
		want error
	}{{"close_notify", nil}, {"FIN", upstream.ErrTruncated}, {"RST", syscall.ECONNRESET}} {
		c, err := m.Connect(t.Context(), pick(t, m, cluster("echo", mtls(echoSNI, echoID), echoAddr)))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "half of the" {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
		how <- tt.how
		if _, err := io.ReadAll(c); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.how, err, tt.want)
		}
		c.Abort()
	}
}

func TestAbortResets(t *testing.T) {
	ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
	m := start(t, upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
	got := make(chan error, 1)
	serveTLS(t, network.Listen(echoAddr), ca.Server(echoID), func(c *tls.Conn) {
		_, _ = io.WriteString(c, "!")
		_, err := io.ReadAll(c)
		got <- err
	})
	c, err := m.Connect(t.Context(), pick(t, m, cluster("echo", mtls(echoSNI, echoID), echoAddr)))
	if err != nil {
		t.Fatal(err)
	}
	// Under TLS 1.3 the client is done first: wait until the server is too.
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.Abort()
	c.Abort() // once is enough
	if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer saw %v", err)
	}
}

func TestOriginalDestination(t *testing.T) {
	network := upstreamtest.NewNet()
	m := start(t, upstream.Config{Dial: network.Dial})
	dst := netip.MustParseAddrPort("203.0.113.5:25")
	c := &resource.Cluster{Name: "PassthroughCluster", Discovery: resource.OriginalDst}
	target, err := m.Pick(t.Context(), c, nil, dst, nil)
	if err != nil || target.Address() != dst || target.Host != nil {
		t.Fatalf("%+v, %v", target, err)
	}
	if _, err := m.Connect(t.Context(), target); reason(err) != "connect" {
		t.Errorf("connect: %v", err)
	}
	if _, err := m.Pick(t.Context(), c, nil, netip.AddrPort{}, nil); reason(err) != "no_endpoint" {
		t.Errorf("without a destination: %v", err)
	}
	if d := network.Dials(); !slices.Equal(d, []string{dst.String()}) {
		t.Errorf("dialled %v", d)
	}
}

func TestConnectionBreaker(t *testing.T) {
	network := upstreamtest.NewNet()
	m := start(t, upstream.Config{Dial: network.Dial})
	serve(t, network.Listen(echoAddr), func(c net.Conn) { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
	c := cluster("echo", resource.Transport{}, echoAddr)
	c.Breakers.MaxConnections = 1
	first, err := m.Connect(t.Context(), pick(t, m, c))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Connect(t.Context(), pick(t, m, c)); reason(err) != "overload" || m.Status().Overflows != 1 {
		t.Errorf("second connection: %v", err)
	}
	_ = first.Close()
	_ = first.Close() // frees its place once
	again, err := m.Connect(t.Context(), pick(t, m, c))
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

// A server that takes its time before it reads on still learns of the end of
// what was sent, however long that is: crypto/tls would give the alert up after
// five seconds, and the server would wait for ever. Close ends the wait.
func TestHalfCloseWaitsForTheServer(t *testing.T) {
	for _, resumes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ca, network := upstreamtest.NewAuthority(t), upstreamtest.NewNet()
			m := upstream.New(upstream.Config{Identity: ca.Store(0), Dial: network.Dial})
			l := network.Listen(echoAddr)
			defer l.Close()
			ready, resume := make(chan struct{}), make(chan struct{})
			var running sync.WaitGroup
			var got int64
			var gotErr error
			running.Go(func() {
				raw, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				s := tls.Server(raw, ca.Server(echoID))
				defer s.Close()
				if err := s.Handshake(); err != nil {
					t.Error(err)
				}
				close(ready)
				<-resume
				got, gotErr = io.Copy(io.Discard, s)
			})
			c, err := m.Connect(t.Context(), pick(t, m, cluster("echo", mtls(echoSNI, echoID), echoAddr)))
			if err != nil {
				t.Fatal(err)
			}
			<-ready
			// Exactly what the socket holds: three records of the full size and
			// a shorter one, each with 22 bytes of its own.
			const size = 64<<10 - 4*22
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			running.Go(func() { ended <- c.CloseWrite() })
			time.Sleep(time.Minute) //rule:allow the bubble's clock
			select {
			case err := <-ended:
				t.Errorf("CloseWrite did not wait: %v", err)
				ended <- err
			default:
			}
			if !resumes {
				_ = c.Close() // that there was no close_notify is no error here
			}
			close(resume)
			if err := <-ended; (err == nil) != resumes {
				t.Errorf("CloseWrite: %v", err)
			}
			_ = c.Close()
			running.Wait()
			if got != size || (gotErr == nil) != resumes {
				t.Errorf("the server got %d bytes and %v", got, gotErr)
			}
		})
	}
}
