// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

// A socketFlow is an accepted kernel connection that plays a captured one.
type socketFlow struct {
	*net.TCPConn
	dst netip.AddrPort
}

func (f socketFlow) Source() netip.AddrPort      { return netip.MustParseAddrPort("192.0.0.2:40000") }
func (f socketFlow) Destination() netip.AddrPort { return f.dst }
func (f socketFlow) Done() <-chan struct{}       { return nil }
func (f socketFlow) Accept() (proxy.Conn, error) { return f, nil }
func (f socketFlow) Reject()                     { f.Abort() }
func (f socketFlow) OnReset(func())              {}

func (f socketFlow) Abort() {
	_ = f.SetLinger(0)
	_ = f.Close()
}

func benchTelemetry(b *testing.B) *telemetry.Telemetry {
	b.Helper()
	tel, err := telemetry.New(telemetry.Config{})
	if err != nil {
		b.Fatal(err)
	}
	return tel
}

func benchProxy(b *testing.B, endpoint string, dial upstream.DialFunc) *proxy.Proxy {
	b.Helper()
	return proxy.New(proxy.Config{
		Catalog:   benchMesh(static("echo", endpoint)),
		Telemetry: benchTelemetry(b),
		Upstream:  upstream.New(upstream.Config{Dial: dial}),
	})
}

// benchMesh has one service, at vip.
func benchMesh(echo *resource.Cluster) *catalog.Catalog {
	c := catalog.New()
	c.SetClusters([]*resource.Cluster{echo}, nil)
	c.SetListeners([]*resource.Listener{listener(vip, tcpChain(to("echo")))}, nil)
	c.SetNames(&resource.NameTable{})
	c.Publish()
	return c
}

func socketDial(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

// BenchmarkRelay moves bytes through two loopback connections. The direct one
// is what a single connection does.
func BenchmarkRelay(b *testing.B) {
	for _, way := range []string{"direct", "relayed"} {
		b.Run(way, func(b *testing.B) {
			sink := listen(b)
			served := make(chan int64, 1)
			go func() {
				c, err := sink.Accept()
				if err != nil {
					served <- -1
					return
				}
				n, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
				_ = c.Close()
				served <- n
			}()
			target := sink.Addr().String()
			var relaying sync.WaitGroup
			if way == "relayed" {
				front := listen(b)
				p := benchProxy(b, sink.Addr().String(), socketDial)
				relaying.Go(func() {
					c, err := front.Accept()
					if err != nil {
						return
					}
					p.ServeTCP(b.Context(), socketFlow{c.(*net.TCPConn), netip.MustParseAddrPort(vip)})
				})
				target = front.Addr().String()
			}
			c, err := socketDial(b.Context(), "tcp", target)
			if err != nil {
				b.Fatal(err)
			}
			piece := make([]byte, 128<<10)
			b.SetBytes(int64(len(piece)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(piece); err != nil {
					b.Fatal(err)
				}
			}
			_ = c.(*net.TCPConn).CloseWrite()
			if n, want := <-served, int64(b.N)*int64(len(piece)); n != want {
				b.Errorf("%d bytes arrived, want %d", n, want)
			}
			_ = c.Close()
			relaying.Wait()
		})
	}
}

func listen(b *testing.B) net.Listener {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	return l
}

// BenchmarkIdleFlow reports what a flow costs here that does nothing: its
// connections, which are fakes, included.
func BenchmarkIdleFlow(b *testing.B) {
	const flows = 2000
	dial := func(context.Context, string, string) (net.Conn, error) {
		_, ours := newPair("", nil)
		return ours, nil
	}
	p := benchProxy(b, "10.0.0.1:1", dial)
	var heap, stack uint64
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		var running, opened sync.WaitGroup
		before := memory()
		for range flows {
			opened.Add(1)
			f := &idleFlow{opened: opened.Done}
			running.Go(func() { p.ServeTCP(ctx, f) })
		}
		opened.Wait()
		after := memory()
		heap, stack = after.HeapAlloc-before.HeapAlloc, after.StackInuse-before.StackInuse
		cancel()
		running.Wait()
	}
	b.ReportMetric(float64(heap)/flows, "heap-B/flow")
	b.ReportMetric(float64(stack)/flows, "stack-B/flow")
}

func memory() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}

// An idleFlow tells when its relay waits for the client.
type idleFlow struct {
	*memConn
	opened func()
	once   sync.Once
}

func (f *idleFlow) Source() netip.AddrPort      { return netip.MustParseAddrPort("192.0.0.2:40000") }
func (f *idleFlow) Destination() netip.AddrPort { return netip.MustParseAddrPort(vip) }
func (f *idleFlow) Done() <-chan struct{}       { return nil }
func (f *idleFlow) Reject()                     {}

func (f *idleFlow) Accept() (proxy.Conn, error) {
	_, f.memConn = newPair("", nil)
	return f, nil
}

func (f *idleFlow) Read(b []byte) (int, error) {
	f.once.Do(f.opened)
	return f.memConn.Read(b)
}

// BenchmarkDownload moves bytes from a workload behind mutual TLS to the
// client, and reports how large the pieces are that reach the client's
// connection: each becomes a packet of the tunnel.
func BenchmarkDownload(b *testing.B) {
	ca := upstreamtest.NewAuthority(b)
	var serving sync.WaitGroup
	back, front := listen(b), listen(b)
	serving.Go(func() {
		c, err := back.Accept()
		if err != nil {
			return
		}
		s := tls.Server(c, ca.Server("spiffe://cluster.local/ns/testing/sa/default"))
		defer s.Close()
		piece := make([]byte, 128<<10)
		for err == nil { // until the client ends
			_, err = s.Write(piece)
		}
	})
	echo := static("echo", back.Addr().String())
	echo.Transport = resource.Transport{Kind: resource.IstioMTLS, SNI: "echo", ALPN: []string{"istio"}}
	p := proxy.New(proxy.Config{
		Catalog:   benchMesh(echo),
		Telemetry: benchTelemetry(b),
		Upstream:  upstream.New(upstream.Config{Dial: socketDial, Identity: ca.Store(0)}),
	})
	var writes, bytes atomic.Int64
	serving.Go(func() {
		c, err := front.Accept()
		if err != nil {
			return
		}
		p.ServeTCP(b.Context(), countedFlow{socketFlow{c.(*net.TCPConn), netip.MustParseAddrPort(vip)}, &writes, &bytes})
	})
	c, err := socketDial(b.Context(), "tcp", front.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	socketFlow{TCPConn: c.(*net.TCPConn)}.Abort()
	serving.Wait()
	b.ReportMetric(float64(bytes.Load())/float64(writes.Load()), "B/write")
}

// A countedFlow counts what is written to the client.
type countedFlow struct {
	socketFlow
	writes, bytes *atomic.Int64
}

func (f countedFlow) Accept() (proxy.Conn, error) { return f, nil }

func (f countedFlow) Write(b []byte) (int, error) {
	f.writes.Add(1)
	f.bytes.Add(int64(len(b)))
	return f.TCPConn.Write(b)
}
