// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// running is a Stack whose end the test decides.
type running struct {
	*netstack.Stack
	stop  context.CancelFunc
	ended chan error
}

func run(t *testing.T, c *netstacktest.Client, h netstack.Handler) *running {
	t.Helper()
	s, err := netstack.New(netstack.Config{Device: c.Device(), Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Stack: s, stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- s.Run(ctx) }()
	return r
}

// waits serves flows that do not end by themselves, each in another way by its
// port, and says when it waits.
func waits(t *testing.T, ready chan<- struct{}) handler {
	return handler{
		tcp: func(ctx context.Context, f *netstack.TCPFlow) {
			switch f.Destination().Port() {
			case 1: // for the decision
				ready <- struct{}{}
				<-ctx.Done()
				return
			case 2: // for a client that never answers
				ready <- struct{}{}
				if c, err := f.Accept(); err == nil {
					t.Errorf("accepted %v", c.RemoteAddr())
				}
				return
			}
			c, err := f.Accept()
			if err != nil {
				t.Errorf("Accept: %v", err)
				return
			}
			ready <- struct{}{}
			switch f.Destination().Port() {
			case 3:
				_, err = c.Read(make([]byte, 1))
			case 4:
				_, err = io.Copy(c, endless{})
			case 5:
				_, err = io.Copy(endless{}, c)
			}
			if err == nil {
				t.Errorf("port %d: ended without an error", f.Destination().Port())
			}
		},
		udp: func(_ context.Context, f *netstack.UDPFlow) {
			c, _ := f.Accept()
			c.Read(make([]byte, 1))
			ready <- struct{}{}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("session read without an error")
			}
		},
	}
}

// When Run ends, no handler is left: those that wait, accept, read, write, or
// hold a session are woken, and the client sees a reset.
func TestRunEndsHandlers(t *testing.T) {
	ready := make(chan struct{}, 16)
	c := netstacktest.New(t, netstacktest.Options{})
	r := run(t, c, waits(t, ready))
	port := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(service4.Addr(), p) }
	nobody := netip.MustParseAddrPort("192.0.2.200:999")
	c.SendTCP(netstacktest.Segment{Src: nobody, Dst: port(1), SYN: true})
	c.SendTCP(netstacktest.Segment{Src: nobody, Dst: port(2), SYN: true})
	c.SendPacket(netstacktest.Datagram(nobody, port(9), []byte("x")))
	for p := uint16(3); p <= 5; p++ {
		conn, err := c.DialTCP(t.Context(), port(p))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		defer func() {
			if _, err := io.Copy(io.Discard, conn); err == nil {
				t.Errorf("port %d: the client saw an orderly end", p)
			}
		}()
	}
	for range 6 {
		<-ready
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if got := r.Stats(); got.TCP.InFlight+got.TCP.Open+got.UDP.Sessions != 0 {
		t.Errorf("stats %+v", got)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error)  { return len(b), nil }
func (endless) Write(b []byte) (int, error) { return len(b), nil }

// Drain lets what is open go on, refuses what is new, and returns when the
// last flow has ended.
func TestDrain(t *testing.T) {
	c := netstacktest.New(t, netstacktest.Options{})
	served := make(chan struct{})
	r := run(t, c, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
		served <- struct{}{}
		io.Copy(conn, conn)
	})})
	conn, err := c.DialTCP(t.Context(), service4)
	if err != nil {
		t.Fatal(err)
	}
	<-served

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Drain(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "1 flow") {
		t.Errorf("Drain with a flow open: %v", err)
	}
	if _, err := c.DialTCP(t.Context(), service4); !errors.Is(err, netstacktest.ErrRefused) {
		t.Errorf("new connection: %v", err)
	}
	udp, err := c.DialUDP(service4)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udp.Write([]byte("x"))
	if err := udp.WaitRefused(t.Context()); err != nil {
		t.Errorf("new session: %v", err)
	}

	conn.Write([]byte("still"))
	conn.CloseWrite()
	if b, err := io.ReadAll(conn); string(b) != "still" || err != nil {
		t.Errorf("open connection: %q, %v", b, err)
	}
	conn.Close()
	if err := r.Drain(t.Context()); err != nil {
		t.Errorf("Drain: %v", err)
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestDeviceGone(t *testing.T) {
	c := netstacktest.New(t, netstacktest.Options{})
	r := run(t, c, handler{})
	c.Unplug()
	if err := <-r.ended; err == nil || !strings.HasPrefix(err.Error(), "read tun: ") {
		t.Errorf("Run: %v", err)
	}
	if err := r.Run(t.Context()); err == nil {
		t.Error("Run a second time succeeded")
	}
	r.stop()
}

// A Stack that is never run holds nothing after Close.
func TestNeverRun(t *testing.T) {
	c := netstacktest.New(t, netstacktest.Options{})
	s, err := netstack.New(netstack.Config{Device: c.Device(), Handler: handler{}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("Run after Close succeeded")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*netstack.Config){
		"no handler":          func(c *netstack.Config) { c.Handler = nil },
		"mtu":                 func(c *netstack.Config) { c.Device.MTU = 500 },
		"needs a vnet header": func(c *netstack.Config) { c.Device.VnetHdr = false },
	} {
		cfg := netstack.Config{Device: netstacktest.New(t, netstacktest.Options{}).Device(), Handler: handler{}}
		change(&cfg)
		if _, err := netstack.New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
