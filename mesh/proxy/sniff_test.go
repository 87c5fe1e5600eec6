// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// auto is a listener like istiod's for a port of unknown protocol: HTTP is
// routed, TLS goes by its server name, all else is relayed.
func auto(change func(*resource.Listener)) []any {
	l := listener(
		vip,
		&resource.FilterChain{
			Match: resource.ChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1", "h2c"}},
			HTTP:  &resource.HTTPManager{RouteName: "80"},
		},
		&resource.FilterChain{Match: resource.ChainMatch{TransportProtocol: "tls", ServerNames: []string{"a.example"}}, TCP: to("tls-a")},
		&resource.FilterChain{Match: resource.ChainMatch{TransportProtocol: "tls", ApplicationProtocols: []string{"h2"}}, TCP: to("tls-h2")},
	)
	l.TLSInspector, l.HTTPInspector = true, true
	l.Default = tcpChain(to("raw"))
	if change != nil {
		change(l)
	}
	routes := &resource.RouteConfiguration{Name: "80"}
	l.Chains[0].HTTP.RouteName, l.Chains[0].HTTP.Routes = "", routes
	return []any{l, static("raw", "10.0.0.1:1"), static("tls-a", "10.0.0.2:2"), static("tls-h2", "10.0.0.3:3")}
}

// clientHello is what a TLS client says first.
func clientHello(t testing.TB, cfg *tls.Config) string {
	t.Helper()
	c, s := net.Pipe()
	first := make(chan string, 1)
	go func() {
		b := make([]byte, 1<<16)
		n, _ := s.Read(b)
		s.Close()
		first <- string(b[:n])
	}()
	_ = tls.Client(c, cfg).HandshakeContext(t.Context()) // ends when s does
	return <-first
}

func TestFirstBytesChooseTheChain(t *testing.T) {
	helloA := clientHello(t, &tls.Config{ServerName: "A.example"})
	helloB := clientHello(t, &tls.Config{ServerName: "b.example", NextProtos: []string{"h2", "http/1.1"}})
	helloC := clientHello(t, &tls.Config{ServerName: "c.example"})
	const http = "http"
	for _, tt := range []struct {
		name, first string
		want        string // the upstream's address, or http
	}{
		{"a request", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", http},
		{"a request behind an empty line", "\r\nPOST /x HTTP/1.1\r\n", http},
		{"h2c", preface + "frames", http},
		{"a request of another version", "GET / HTTP/1.0\r\n\r\n", "10.0.0.1:1"}, // no chain takes http/1.0
		{"a method that is none", "HELO me HTTP/1.1\r\n", "10.0.0.1:1"},
		{"SSH", "SSH-2.0-OpenSSH_9.6\r\n", "10.0.0.1:1"},
		{"redis", "*1\r\n$4\r\nPING\r\n", "10.0.0.1:1"},
		{"a command that looks like a method", "PUT key value\r\n", "10.0.0.1:1"},
		{"binary", "\x00\x01\x02", "10.0.0.1:1"},
		{"what begins like h2", "PRI * HTTP/3", "10.0.0.1:1"},
		{"TLS to a known name", helloA, "10.0.0.2:2"},
		{"TLS by ALPN", helloB, "10.0.0.3:3"},
		{"TLS that no chain takes", helloC, "10.0.0.1:1"},
		{"an alert", "\x15\x03\x01\x00\x02\x02\x28", "10.0.0.1:1"},
		{"a record that is too long", "\x16\x03\x01\xff\xff\x01", "10.0.0.1:1"},
		{"a broken hello", "\x16\x03\x01\x00\x08\x01\x00\x00\x04\xff\xff\xff\xff", "10.0.0.1:1"},
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			t.Run(tt.name, func(t *testing.T) {
				r := newRig(t, nil, auto(nil)...)
				f := r.connect(vip)
				go func() {
					for piece := range slices.Chunk([]byte(tt.first), size) {
						send(t, f.client, string(piece))
					}
					if tt.want == http {
						_ = f.client.CloseWrite()
					}
				}()
				if tt.want == http {
					r.running.Wait()
					if len(r.http.got) != 1 {
						t.Fatalf("HTTP got %d connections; events %v", len(r.http.got), r.log.all())
					}
					in := r.http.got[0]
					if r.http.read[0] != tt.first || in.H2 != strings.HasPrefix(tt.first, "PRI") || in.Dst.String() != vip || in.Manager == nil {
						t.Errorf("HTTP got %q, %+v", r.http.read[0], in)
					}
					r.expectEvents("accept", "client close")
					if n := len(r.records()); n != 0 {
						t.Errorf("%d records beside those of requests", n)
					}
					return
				}
				server := <-r.servers
				expect(t, server, tt.first) // nothing is lost
				server.Close()
				expectEnd(t, f.client, io.EOF)
				f.client.Close()
				if m := r.record(); m["upstream"] != tt.want || m["bytes_in"] != float64(len(tt.first)) {
					t.Errorf("record %v, want upstream %s", m, tt.want)
				}
			})
		}
	}
}

// A MySQL or SMTP server speaks first. istiod sets no time limit for the
// inspectors, so that Envoy would wait for ever.
func TestServerFirstProtocolLives(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		wait    time.Duration
	}{
		{"without a limit of the mesh", 0, time.Second},
		{"within the mesh's limit", 100 * time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil, auto(func(l *resource.Listener) { l.SniffTimeout = tt.timeout })...)
				start := time.Now()
				f := r.connect(vip)
				server := <-r.servers
				if waited := time.Since(start); waited != tt.wait {
					t.Errorf("dialled after %v, want %v", waited, tt.wait)
				}
				send(t, server, "220 mail.example ESMTP\r\n")
				expect(t, f.client, "220 mail.example ESMTP\r\n")
				// The limit is not left behind.
				synctest.Wait()
				time.AfterFunc(time.Hour, func() { send(t, f.client, "QUIT\r\n") })
				expect(t, server, "QUIT\r\n")
				server.Close()
				expectEnd(t, f.client, io.EOF)
				f.client.Close()
				r.expectReason("")
			})
		})
	}
	t.Run("where the mesh does not allow it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, auto(func(l *resource.Listener) {
				l.SniffTimeout, l.ContinueOnTimeout = time.Second, false
			})...)
			f := r.connect(vip)
			expectEnd(t, f.client, syscall.ECONNRESET)
			r.expectReason("sniff")
		})
	})
}

// What became the mesh's while the client was silent does not leave in clear.
func TestSilentClientOfAnAddressThatBecomesTheMeshs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outside := virtual(tcpChain(to("PassthroughCluster")))
		outside.Chains = append(outside.Chains, &resource.FilterChain{
			Match: resource.ChainMatch{ApplicationProtocols: []string{"http/1.1"}}, HTTP: &resource.HTTPManager{Routes: &resource.RouteConfiguration{}},
		})
		outside.HTTPInspector, outside.SniffTimeout, outside.ContinueOnTimeout = true, time.Hour, true
		var mesh *catalog.Catalog
		r := newRig(t, func(c *proxy.Config) { mesh = c.Catalog }, passthrough, outside)
		f := r.connect(vip)
		synctest.Wait()
		mesh.SetNames(&resource.NameTable{Names: map[string]*resource.Name{
			"echo.testing": {Host: "echo.testing", Addresses: []netip.Addr{netip.MustParseAddrPort(vip).Addr()}},
		}})
		mesh.Publish()
		send(t, f.client, "\x00secret")
		expectEnd(t, f.client, syscall.ECONNRESET)
		r.expectReason("unrouted")
		r.expectEvents("accept", "client abort")
	})
}

// Port 80 of a service has an HTTP chain, and a default chain that passes
// through what is not HTTP: nothing of the mesh may go there, so that there is
// no server to wait for, and a connection opened ahead may be used late.
func TestSilentClientOfAnHTTPPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, append(auto(func(l *resource.Listener) { l.Default = tcpChain(to("PassthroughCluster")) }), passthrough)...)
		f := r.connect(vip)
		time.AfterFunc(time.Hour, func() {
			send(t, f.client, "GET / HTTP/1.1\r\n\r\n")
			_ = f.client.CloseWrite()
		})
		r.running.Wait()
		if len(r.http.got) != 1 {
			t.Errorf("HTTP got %d connections; events %v", len(r.http.got), r.log.all())
		}
	})
}

func TestClientsThatEndWhileTheyAreSniffed(t *testing.T) {
	t.Run("half of a request line, then silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, auto(nil)...)
			f := r.connect(vip)
			send(t, f.client, "GET /")
			server := <-r.servers
			expect(t, server, "GET /")
			f.client.Close()
			expectEnd(t, server, io.EOF)
			server.Close()
			r.expectReason("")
		})
	})
	t.Run("an end without a word: the server may still speak", func(t *testing.T) {
		r := newRig(t, nil, auto(nil)...)
		f := r.connect(vip)
		_ = f.client.CloseWrite()
		server := <-r.servers
		expectEnd(t, server, io.EOF)
		send(t, server, "banner")
		server.Close()
		expect(t, f.client, "banner")
		expectEnd(t, f.client, io.EOF)
		f.client.Close()
		r.expectReason("")
	})
	t.Run("an end without a word, where only HTTP has a way", func(t *testing.T) {
		r := newRig(t, nil, append(auto(func(l *resource.Listener) { l.Default = tcpChain(to("PassthroughCluster")) }), passthrough)...)
		f := r.connect(vip)
		_ = f.client.CloseWrite()
		expectEnd(t, f.client, io.EOF)
		f.client.Close()
		if all := r.records(); len(all) != 0 {
			t.Errorf("records of nothing: %v", all)
		}
	})
	t.Run("a reset", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, auto(nil)...)
			f := r.connect(vip)
			send(t, f.client, "GE")
			synctest.Wait()
			f.client.Abort()
			r.expectReason("client_gone")
		})
	})
	t.Run("a reset while dialling", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, auto(nil)...)
			r.hang = true
			f := r.connect(vip)
			send(t, f.client, "*1\r\n")
			synctest.Wait()
			f.client.Abort()
			r.expectReason("client_gone")
		})
	})
	t.Run("a refused dial is a reset", func(t *testing.T) {
		r := newRig(t, nil, auto(nil)...)
		r.dialErr = errRefused
		f := r.connect(vip)
		send(t, f.client, "*1\r\n")
		expectEnd(t, f.client, syscall.ECONNRESET)
		r.expectReason("connect")
	})
	t.Run("endless babble", func(t *testing.T) {
		r := newRig(t, nil, auto(nil)...)
		f := r.connect(vip)
		long := "GET /" + strings.Repeat("a", 100<<10)
		go send(t, f.client, long)
		server := <-r.servers
		expect(t, server, long)
		server.Close()
		expectEnd(t, f.client, io.EOF)
		f.client.Close()
		r.expectReason("")
	})
}

// Where the chain is HTTP whatever the bytes, the client is not hurried.
func TestHTTPWithoutInspectors(t *testing.T) {
	plain := func(idle time.Duration) *resource.Listener {
		return listener(vip, &resource.FilterChain{HTTP: &resource.HTTPManager{Routes: &resource.RouteConfiguration{}, IdleTimeout: idle}})
	}
	t.Run("a preconnect that is used late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, plain(0))
			f := r.connect(vip)
			time.AfterFunc(time.Hour, func() {
				send(t, f.client, preface)
				_ = f.client.CloseWrite()
			})
			r.running.Wait()
			if len(r.http.got) != 1 || !r.http.got[0].H2 || r.http.read[0] != preface {
				t.Errorf("HTTP got %+v, %q", r.http.got, r.http.read)
			}
		})
	})
	t.Run("a preconnect that is not used", func(t *testing.T) {
		r := newRig(t, nil, plain(0))
		f := r.connect(vip)
		f.client.Close()
		if n := len(r.records()); n != 0 || len(r.http.got) != 0 {
			t.Errorf("%d records, %d connections for HTTP", n, len(r.http.got))
		}
	})
	t.Run("a preconnect that is idle for too long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, plain(time.Minute))
			f := r.connect(vip)
			start := time.Now()
			expectEnd(t, f.client, io.EOF)
			if took := time.Since(start); took != time.Minute {
				t.Errorf("closed after %v", took)
			}
			r.running.Wait()
		})
	})
	t.Run("a request", func(t *testing.T) {
		r := newRig(t, nil, plain(0))
		f := r.connect(vip)
		send(t, f.client, "GET / HTTP/1.1\r\n\r\n")
		_ = f.client.CloseWrite()
		r.running.Wait()
		if len(r.http.got) != 1 || r.http.got[0].H2 || r.http.read[0] != "GET / HTTP/1.1\r\n\r\n" {
			t.Errorf("HTTP got %+v, %q", r.http.got, r.http.read)
		}
	})
}

// istiod tells of HTTP/1.0 in the HTTP manager, and leaves it out of the
// protocols of the chain (for a manager that does not, see the table above).
func TestHTTP10GoesWhereItIsAccepted(t *testing.T) {
	const request = "GET / HTTP/1.0\r\n\r\n"
	r := newRig(t, nil, auto(func(l *resource.Listener) { l.Chains[0].HTTP.AcceptHTTP10 = true })...)
	f := r.connect(vip)
	go func() {
		send(t, f.client, request)
		_ = f.client.CloseWrite()
	}()
	r.running.Wait()
	if len(r.http.got) != 1 || r.http.read[0] != request {
		t.Errorf("HTTP got %q; events %v", r.http.read, r.log.all())
	}
}
