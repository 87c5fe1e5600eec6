// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/refs"

	"github.com/nasp-tun/nasp-tun/netstack"
)

// The benchmarks move data between a client in a network namespace and a
// server on this machine's loopback, through a relay: once the stack over a
// real TUN device, once plain kernel sockets, which is the best that any relay
// can do. Compare within one run: the ratio says something, the figure little.
//
//	go test -run '^$' -bench . ./netstack      (as root)

// server is on loopback. The first byte says what it does: send (d), take (u),
// or send one byte (e).
func server(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				switch first := make([]byte, 1); {
				case readFull(c, first) != nil:
				case first[0] == 'e':
					c.Write(first)
					io.Copy(io.Discard, c)
				case first[0] == 'd':
					buf := make([]byte, 65372)
					for err := error(nil); err == nil; {
						_, err = c.Write(buf)
					}
				default:
					io.Copy(io.Discard, onlyReader{c})
				}
			})
		}
	})
	b.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func readFull(r io.Reader, b []byte) error { _, err := io.ReadFull(r, b); return err }

// onlyReader and onlyWriter keep io.Copy from splicing, which no relay that
// encrypts could do.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// relays runs a benchmark through each relay. stats is nil for the kernel's.
func relays(b *testing.B, bench func(b *testing.B, dial func() net.Conn, stats func() netstack.Stats)) {
	needNamespaces(b)
	refs.SetLeakMode(refs.NoLeakChecking)
	b.Cleanup(func() { refs.SetLeakMode(refs.LeaksPanic) })
	b.Run("tun", func(b *testing.B) {
		upstream := server(b)
		k := newKernel(b)
		s := k.serve(handler{tcp: func(_ context.Context, f *netstack.TCPFlow) {
			up, err := net.Dial("tcp", upstream)
			if err != nil {
				return
			}
			if down, err := f.Accept(); err == nil {
				relay(down, up, io.Copy)
				down.Abort()
			}
		}})
		bench(b, func() net.Conn { return k.mustDial("tcp", "203.0.113.7:80") }, s.Stats)
	})
	b.Run("kernel", func(b *testing.B) {
		address := kernelRelay(b, server(b))
		bench(b, func() net.Conn {
			c, err := net.Dial("tcp", address)
			if err != nil {
				b.Fatal(err)
			}
			return c
		}, nil)
	})
}

// kernelRelay is the same between sockets.
func kernelRelay(b *testing.B, upstream string) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	b.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer down.Close()
				if up, err := net.Dial("tcp", upstream); err == nil {
					relay(down, up, func(w io.Writer, r io.Reader) (int64, error) {
						return io.CopyBuffer(onlyWriter{w}, onlyReader{r}, make([]byte, 64<<10))
					})
					down.(*net.TCPConn).SetLinger(0)
				}
			})
		}
	})
	return l.Addr().String()
}

// relay copies both ways until both have ended, and closes up.
func relay(down, up net.Conn, copy func(io.Writer, io.Reader) (int64, error)) {
	defer up.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		copy(onlyWriter{up}, down)
		up.(*net.TCPConn).CloseWrite()
	})
	copy(down, onlyReader{up})
	down.SetDeadline(time.Unix(1, 0)) // the other way is of no use any more
	wg.Wait()
}

const benchBlock = 1 << 20

func BenchmarkUpload(b *testing.B) {
	relays(b, func(b *testing.B, dial func() net.Conn, stats func() netstack.Stats) {
		c := dial()
		defer c.Close()
		c.Write([]byte("u"))
		block := make([]byte, benchBlock)
		b.SetBytes(benchBlock)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)*benchBlock*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
		if stats != nil {
			b.ReportMetric(float64(stats().Device.RxMean()), "B/packet")
		}
	})
}

func BenchmarkDownload(b *testing.B) {
	relays(b, func(b *testing.B, dial func() net.Conn, stats func() netstack.Stats) {
		c := dial()
		defer c.Close()
		c.Write([]byte("d"))
		block := make([]byte, benchBlock)
		b.SetBytes(benchBlock)
		b.ReportAllocs()
		for b.Loop() {
			if err := readFull(c, block); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)*benchBlock*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
		if stats != nil {
			b.ReportMetric(float64(stats().Device.TxMean()), "B/packet")
		}
	})
}

func BenchmarkConnect(b *testing.B) {
	relays(b, func(b *testing.B, dial func() net.Conn, _ func() netstack.Stats) {
		b.ReportAllocs()
		for b.Loop() {
			c := dial()
			c.Write([]byte("e"))
			if err := readFull(c, make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
	})
}

// BenchmarkIdleFlow reports what a connection holds that does nothing: the
// stack's part, with both directions being copied, and the client's socket.
func BenchmarkIdleFlow(b *testing.B) {
	refs.SetLeakMode(refs.NoLeakChecking)
	b.Cleanup(func() { refs.SetLeakMode(refs.LeaksPanic) })
	k := newKernel(b)
	idle := make(chan struct{})
	k.serve(handler{tcp: func(_ context.Context, f *netstack.TCPFlow) {
		c, err := f.Accept()
		if err != nil {
			return
		}
		r, w := io.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			io.Copy(c, r)
		})
		idle <- struct{}{}
		io.Copy(io.Discard, c)
		w.Close()
		wg.Wait()
	}})
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := used()
	var conns []net.Conn
	for b.Loop() {
		conns = append(conns, k.mustDial("tcp", "203.0.113.7:80"))
		<-idle
	}
	b.ReportMetric(float64(used()-before)/float64(len(conns)), "B/flow")
	for _, c := range conns {
		c.Close()
	}
}
