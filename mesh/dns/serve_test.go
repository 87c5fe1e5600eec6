// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	mdns "github.com/miekg/dns"

	"github.com/nasp-tun/nasp-tun/mesh/dns"
)

// slow answers slow.example when released and everything else at once.
type slow struct{ release chan struct{} }

func (s slow) forward(ctx context.Context, q *mdns.Msg, _ bool) (*mdns.Msg, error) {
	if q.Question[0].Name == "slow.example." {
		select {
		case <-s.release:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return new(mdns.Msg).SetReply(q), nil
}

func withID(id uint16) func(*mdns.Msg) { return func(m *mdns.Msg) { m.Id = id } }

func TestFlowAnswersOutOfOrder(t *testing.T) {
	w := slow{make(chan struct{})}
	s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: w.forward})
	client, server := net.Pipe() // keeps message boundaries as long as reads are large
	var serving sync.WaitGroup
	serving.Go(func() { s.ServeFlow(t.Context(), server) })

	// glibc asks for A and AAAA from one socket: neither may wait for the
	// other.
	send := func(b []byte) {
		if _, err := client.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() uint16 {
		b := make([]byte, 4096)
		n, err := client.Read(b)
		if err != nil || n < 12 {
			t.Fatal(n, err)
		}
		return binary.BigEndian.Uint16(b)
	}
	send(query("slow.example", mdns.TypeA, withID(1)))
	send([]byte("garbage"))
	send(query("fast.example", mdns.TypeA, withID(2)))
	if id := receive(); id != 2 {
		t.Errorf("first answer is to question %d", id)
	}
	close(w.release)
	if id := receive(); id != 1 {
		t.Errorf("second answer is to question %d", id)
	}
	client.Close()
	serving.Wait()
}

func TestFlowEndsWithContext(t *testing.T) {
	w := slow{make(chan struct{})}
	s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: w.forward})
	client, server := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { s.ServeFlow(ctx, server) })
	if _, err := client.Write(query("slow.example", mdns.TypeA)); err != nil {
		t.Fatal(err)
	}
	cancel()
	serving.Wait() // the question under way ends too
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestConnPipelines(t *testing.T) {
	w := slow{make(chan struct{})}
	s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: w.forward})
	client, server := net.Pipe()
	var serving sync.WaitGroup
	serving.Go(func() { s.ServeConn(t.Context(), server) })
	c := &mdns.Conn{Conn: client}
	for id, name := range []string{"slow.example", "echo.testing", "pods.testing"} {
		q := query(name, mdns.TypeA, withID(uint16(id)))
		// In single bytes, as the worst of segmentations.
		for _, b := range append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...) {
			if _, err := client.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		if id == 0 {
			continue
		}
		m, err := c.ReadMsg()
		if err != nil || m.Id != uint16(id) || len(m.Answer) == 0 {
			t.Fatalf("%v, %v", m, err)
		}
	}
	close(w.release)
	if m, err := c.ReadMsg(); err != nil || m.Id != 0 {
		t.Fatalf("%v, %v", m, err)
	}
	client.Close()
	serving.Wait()
}

func TestConnRefusesGarbageAndSilence(t *testing.T) {
	for _, tt := range []struct {
		name string
		send []byte
	}{
		{"silence", nil},
		{"half a length", []byte{0}},
		{"a length without a message", []byte{0, 40, 1, 2, 3}},
		{"a message without a header", []byte{0, 4, 1, 2, 3, 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := dns.New(dns.Config{Snapshot: snapshot(t), Forward: new(world).forward})
				client, server := net.Pipe()
				var serving sync.WaitGroup
				serving.Go(func() { s.ServeConn(t.Context(), server) })
				_, _ = client.Write(tt.send)
				if n, err := client.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("read %d, %v; want the connection closed", n, err)
				}
				serving.Wait()
			})
		})
	}
}

func TestSockets(t *testing.T) {
	s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: new(world).forward})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	errs := make([]error, 2)
	serving.Go(func() { errs[0] = s.ServePacketConn(ctx, pc) })
	serving.Go(func() { errs[1] = s.ServeListener(ctx, l) })
	for network, addr := range map[string]net.Addr{"udp": pc.LocalAddr(), "tcp": l.Addr()} {
		c := &mdns.Client{Net: network}
		a, _, err := c.ExchangeContext(ctx, new(mdns.Msg).SetQuestion("echo.testing.", mdns.TypeA), addr.String())
		if err != nil {
			t.Error(network, err)
			continue
		}
		if got := brief(a); got != "NOERROR 10.96.0.10" {
			t.Error(network, got)
		}
	}
	cancel()
	serving.Wait()
	if errs[0] != nil || errs[1] != nil {
		t.Errorf("ended with %v", errs)
	}
}

func TestSocketLostIsAnError(t *testing.T) {
	s := dns.New(dns.Config{Snapshot: snapshot(t), Forward: new(world).forward})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	l.Close()
	if err := s.ServePacketConn(t.Context(), pc); err == nil {
		t.Error("a closed packet socket is served")
	}
	if err := s.ServeListener(t.Context(), l); err == nil {
		t.Error("a closed listener is served")
	}
}

func FuzzExchange(f *testing.F) {
	f.Add(query("echo.testing", mdns.TypeA), false)
	f.Add(query("example.com", mdns.TypeHTTPS, func(m *mdns.Msg) { m.SetEdns0(4096, true) }), true)
	f.Add(query("echo.testing.lan", mdns.TypeANY, func(m *mdns.Msg) { m.SetEdns0(1, false); m.IsEdns0().SetVersion(9) }), false)
	f.Add(append(query("x", mdns.TypeA)[:12], 0xc0, 12, 0, 1, 0, 1), false)
	f.Add([]byte{}, false)
	snap := snapshot(f, meshNames...)
	s := dns.New(dns.Config{Snapshot: snap, Search: []string{"lan"}, Forward: func(_ context.Context, q *mdns.Msg, _ bool) (*mdns.Msg, error) {
		return new(mdns.Msg).SetReply(q), nil
	}})
	f.Fuzz(func(t *testing.T, q []byte, tcp bool) {
		before := slices.Clone(q)
		a, err := s.Exchange(t.Context(), q, tcp)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(q, before) {
			t.Fatal("the question was changed")
		}
		if len(q) < 12 || q[2]&0x80 != 0 {
			if a != nil {
				t.Fatalf("%x was answered by %x", q, a)
			}
			return
		}
		if len(a) < 12 || a[0] != q[0] || a[1] != q[1] || a[2]&0x80 == 0 {
			t.Fatalf("answer %x to %x", a, q)
		}
		if !tcp && len(a) > 4096 {
			t.Fatalf("%d bytes by UDP", len(a))
		}
		if len(a) > 12 && new(mdns.Msg).Unpack(a) != nil {
			t.Fatalf("answer %x cannot be read", a)
		}
	})
}

func BenchmarkExchange(b *testing.B) {
	s := dns.New(dns.Config{Snapshot: snapshot(b, meshNames...), Forward: new(world).forward})
	q := query("echo.testing", mdns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Exchange(b.Context(), q, false); err != nil {
			b.Fatal(err)
		}
	}
}
