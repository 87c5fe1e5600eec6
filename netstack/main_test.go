// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/refs"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// TestMain fails when a test leaves a goroutine or a reference to one of
// gVisor's counted objects (packets, chunks, routes, segments) behind.
func TestMain(m *testing.M) {
	refs.SetLeakMode(refs.LeaksPanic)
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
		refs.DoLeakCheck()
	}
	os.Exit(code)
}

// service4 and service6 are what the tests connect to.
var (
	service4 = netip.MustParseAddrPort("203.0.113.7:80")
	service6 = netip.MustParseAddrPort("[2001:db8:7::7]:80")
)

// A handler is made of functions. A flow without one is rejected.
type handler struct {
	tcp  func(context.Context, *netstack.TCPFlow)
	udp  func(context.Context, *netstack.UDPFlow)
	echo func(netip.Addr) bool
}

func (h handler) ServeTCP(ctx context.Context, f *netstack.TCPFlow) {
	if h.tcp != nil {
		h.tcp(ctx, f)
	}
}

func (h handler) ServeUDP(ctx context.Context, f *netstack.UDPFlow) {
	if h.udp != nil {
		h.udp(ctx, f)
	}
}

func (h handler) Echo(a netip.Addr) bool { return h.echo != nil && h.echo(a) }

// start runs a Stack for the length of the test, with a client in front.
func start(t testing.TB, h handler, opt netstacktest.Options, limits netstack.Limits) (*netstacktest.Client, *netstack.Stack) {
	t.Helper()
	c := netstacktest.New(t, opt)
	s, err := netstack.New(netstack.Config{Device: c.Device(), Handler: h, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c, s
}

// accept calls serve with each connection.
func accept(t testing.TB, serve func(ctx context.Context, c *netstack.TCPConn)) func(context.Context, *netstack.TCPFlow) {
	return func(ctx context.Context, f *netstack.TCPFlow) {
		c, err := f.Accept()
		if err != nil {
			if ctx.Err() == nil { // the test was not over
				t.Errorf("Accept: %v", err)
			}
			return
		}
		serve(ctx, c)
	}
}

// eventually waits for what other goroutines are about to bring about. It
// polls, for want of an event in counters; go test's own timeout bounds it.
func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("condition not reached")
		}
	}
}

// transfer opens a connection for the length of do.
func transfer(t testing.TB, c *netstacktest.Client, dst netip.AddrPort, do func(*netstacktest.Conn)) {
	t.Helper()
	conn, err := c.DialTCP(t.Context(), dst)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	do(conn)
}
