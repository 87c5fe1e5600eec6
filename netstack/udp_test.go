// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// echoUDP sends each datagram back, after a mark.
func echoUDP(t testing.TB) func(context.Context, *netstack.UDPFlow) {
	return func(_ context.Context, f *netstack.UDPFlow) {
		c, err := f.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			return
		}
		b := make([]byte, 65535)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			if _, err := c.Write(append([]byte("re:"), b[:n]...)); err != nil {
				t.Errorf("Write: %v", err)
			}
		}
	}
}

func TestUDPEcho(t *testing.T) {
	for _, l := range links {
		t.Run(l.name, func(t *testing.T) {
			c, s := start(t, handler{udp: echoUDP(t)}, l.opt, netstack.Limits{})
			conn, err := c.DialUDP(l.dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// All at once: they keep their order, and begin one session.
			sent := []string{"a", "", strings.Repeat("b", 1400), strings.Repeat("c", 9000)}
			for _, m := range sent {
				if _, err := conn.Write([]byte(m)); err != nil {
					t.Fatal(err)
				}
			}
			b := make([]byte, 65535)
			for i, m := range sent {
				n, err := conn.Read(b)
				if err != nil || string(b[:n]) != "re:"+m {
					t.Fatalf("answer %d: %d bytes, %v; want %d", i, n, err, len(m)+3)
				}
			}
			if got := s.Stats().UDP; got.Began != 1 || got.Accepted != 1 || got.Sessions != 1 {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

// A rejected session is refused at once, as a connected socket sees it, and
// the error quotes the datagram.
func TestUDPReject(t *testing.T) {
	reject := func(f *netstack.UDPFlow) {
		f.Reject()
		if _, err := f.Accept(); !errors.Is(err, netstack.ErrDecided) {
			t.Errorf("Accept after Reject: %v", err)
		}
	}
	for _, tt := range []struct {
		name      string
		reject    func(f *netstack.UDPFlow)
		dst       netip.AddrPort
		typ, code uint8
	}{
		{"v4", reject, service4, 3, 3},
		{"v6", reject, service6, 1, 4},
		{"v4 without a decision", func(*netstack.UDPFlow) {}, service4, 3, 3},
		{"v6 without a decision", func(*netstack.UDPFlow) {}, service6, 1, 4},
	} {
		for _, size := range []int{0, 5, 1400, 5000} {
			t.Run(fmt.Sprint(tt.name, " ", size), func(t *testing.T) {
				c, _ := start(t, handler{udp: func(_ context.Context, f *netstack.UDPFlow) {
					tt.reject(f)
				}}, netstacktest.Options{}, netstack.Limits{})
				conn, err := c.DialUDP(tt.dst)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := conn.Write(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				if err := conn.WaitRefused(t.Context()); err != nil {
					t.Errorf("the client's socket: %v", err)
				}
				m, err := c.NextICMP(t.Context())
				if err != nil || m.Src != tt.dst.Addr() || m.Type != tt.typ || m.Code != tt.code {
					t.Errorf("ICMP %+v, %v", m, err)
				}
			})
		}
	}
}

// The client's own port unreachable is an error of the service's session.
func TestUDPClientRefuses(t *testing.T) {
	failed := make(chan error, 1)
	c, _ := start(t, handler{udp: func(_ context.Context, f *netstack.UDPFlow) {
		conn, err := f.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			return
		}
		b := make([]byte, 16)
		conn.Read(b)
		conn.Write(b) // to a port where nobody listens
		_, err = conn.Read(b)
		failed <- err
	}}, netstacktest.Options{}, netstack.Limits{})
	c.SendPacket(netstacktest.Datagram(netip.AddrPortFrom(netstacktest.Addr4, 40000), service4, []byte("x")))
	if err := <-failed; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Read: %v", err)
	}
}

// A session ends when nothing is sent for a while, soon for DNS.
func TestUDPIdle(t *testing.T) {
	t.Parallel() // it waits for seconds
	ended := make(chan error, 1)
	c, s := start(t, handler{udp: func(_ context.Context, f *netstack.UDPFlow) {
		conn, _ := f.Accept()
		b := make([]byte, 16)
		conn.Read(b)
		_, err := conn.Read(b)
		ended <- err
	}}, netstacktest.Options{}, netstack.Limits{})
	dns := netip.AddrPortFrom(service4.Addr(), 53)
	c.SendPacket(netstacktest.Datagram(netip.AddrPortFrom(netstacktest.Addr4, 40000), dns, []byte("query")))
	if err := <-ended; err == nil || err.Error() != "EOF" {
		t.Errorf("Read: %v, want EOF", err)
	}
	if got := s.Stats().UDP.Idle; got != 1 {
		t.Errorf("%d idle sessions", got)
	}
}

// Datagrams to everybody begin no session and get no answer.
func TestUDPToEverybody(t *testing.T) {
	served := make(chan netip.AddrPort, 8)
	c, _ := start(t, handler{udp: func(_ context.Context, f *netstack.UDPFlow) { served <- f.Destination() }},
		netstacktest.Options{}, netstack.Limits{})
	from4, from6 := netip.AddrPortFrom(netstacktest.Addr4, 40000), netip.AddrPortFrom(netstacktest.Addr6, 40000)
	for _, dst := range []string{"255.255.255.255:137", "224.0.0.251:5353"} {
		c.SendPacket(netstacktest.Datagram(from4, netip.MustParseAddrPort(dst), nil))
	}
	c.SendPacket(netstacktest.Datagram(from6, netip.MustParseAddrPort("[ff02::1]:5353"), nil))
	c.SendPacket(netstacktest.Datagram(from4, service4, nil))
	if got := <-served; got != service4 {
		t.Errorf("served %v", got)
	}
	if m, err := c.NextICMP(t.Context()); err != nil || m.Src != service4.Addr() {
		t.Errorf("ICMP %+v, %v", m, err)
	}
}

func TestUDPLimits(t *testing.T) {
	release := make(chan struct{})
	c, s := start(t, handler{udp: func(context.Context, *netstack.UDPFlow) { <-release }},
		netstacktest.Options{}, netstack.Limits{UDPSessions: 3, UDPSessionsPerSource: 2})
	send := func(a netip.Addr, port uint16) {
		dst := service4
		if a.Is6() {
			dst = service6
		}
		c.SendPacket(netstacktest.Datagram(netip.AddrPortFrom(a, port), dst, nil))
	}
	for port := range uint16(3) {
		send(netstacktest.Addr4, 1000+port)
	}
	for port := range uint16(2) {
		send(netstacktest.Addr6, 1000+port)
	}
	eventually(t, func() bool {
		got := s.Stats().UDP
		return got.Sessions == 3 && got.RefusedPerSource == 1 && got.RefusedSessions == 1
	})
	close(release)
	eventually(t, func() bool { return s.Stats().UDP.Sessions == 0 })
}

// A client that asks DNS from a new port each time is answered each time, at
// any rate: sessions that have had their answer make room. What is not DNS, or
// not answered, keeps its session.
func TestUDPLimitsYieldToDNS(t *testing.T) {
	echo := echoUDP(t)
	c, s := start(t, handler{udp: func(ctx context.Context, f *netstack.UDPFlow) {
		if f.Source().Port() == 1000 { // never answered
			<-ctx.Done()
			return
		}
		echo(ctx, f)
	}}, netstacktest.Options{}, netstack.Limits{UDPSessions: 8, UDPSessionsPerSource: 5})
	dns := netip.AddrPortFrom(service4.Addr(), 53)
	c.SendPacket(netstacktest.Datagram(netip.AddrPortFrom(netstacktest.Addr4, 1000), dns, []byte("q")))
	other, err := c.DialUDP(service4)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b := make([]byte, 16)
	ask := func(conn *netstacktest.UDPConn) {
		t.Helper()
		if _, err := conn.Write([]byte("q")); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(b); err != nil || string(b[:n]) != "re:q" {
			t.Fatalf("answer %q, %v", b[:n], err)
		}
	}
	ask(other)
	for range 100 {
		conn, err := c.DialUDP(dns)
		if err != nil {
			t.Fatal(err)
		}
		ask(conn)
		conn.Close()
	}
	ask(other)
	eventually(t, func() bool { return s.Stats().UDP.Evicted >= 97 })
	if got := s.Stats().UDP; got.Began != 102 || got.Sessions != 5 || got.RefusedPerSource != 0 {
		t.Errorf("stats %+v", got)
	}
}

// A handler that does not read costs a bounded queue, of empty datagrams too,
// and gets the first ones.
func TestUDPQueue(t *testing.T) {
	const sent = 2000
	for _, size := range []int{0, 1000} {
		filled, read := make(chan int), make(chan struct{})
		c, s := start(t, handler{udp: func(_ context.Context, f *netstack.UDPFlow) {
			defer close(read)
			conn, _ := f.Accept()
			b := make([]byte, 1500)
			for range <-filled {
				if n, err := conn.Read(b); n != size || err != nil {
					t.Errorf("Read: %d, %v", n, err)
				}
			}
		}}, netstacktest.Options{}, netstack.Limits{})
		p := netstacktest.Datagram(netip.AddrPortFrom(netstacktest.Addr4, 1000), service4, make([]byte, size))
		for range sent {
			c.SendPacket(p)
		}
		c.Ping(t.Context(), service4.Addr(), 0) // behind them
		queued := sent - int(s.Stats().UDP.Overflow)
		if queued == 0 || queued > 512 || queued*size > 256<<10 {
			t.Errorf("%d datagrams of %d bytes queue", queued, size)
		}
		filled <- queued
		<-read
	}
}

func TestUDPTooLong(t *testing.T) {
	for _, dst := range []netip.AddrPort{service4, service6} {
		done := make(chan struct{})
		c, _ := start(t, handler{udp: func(_ context.Context, f *netstack.UDPFlow) {
			defer close(done)
			conn, _ := f.Accept()
			if _, err := conn.Write(make([]byte, 65530)); !errors.Is(err, syscall.EMSGSIZE) {
				t.Errorf("%v: %v", dst, err)
			}
			if n, err := conn.Write(make([]byte, 65507)); n != 65507 || err != nil {
				t.Errorf("%v: %d, %v", dst, n, err)
			}
		}}, netstacktest.Options{}, netstack.Limits{})
		conn, err := c.DialUDP(dst)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("x"))
		<-done
		if n, err := conn.Read(make([]byte, 65535)); n != 65507 || err != nil {
			t.Errorf("%v: read %d, %v", dst, n, err)
		}
		conn.Close()
	}
}
