// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
)

// A udpFlow is a captured flow of datagrams whose client is one end of a
// net.Pipe, which keeps messages apart while reads are large enough.
type udpFlow struct {
	dst          netip.AddrPort
	client, ours net.Conn
	acceptErr    error
	log          *events
}

func newUDPFlow(r *rig, dst string) *udpFlow {
	f := &udpFlow{dst: netip.MustParseAddrPort(dst), log: &r.log}
	f.client, f.ours = net.Pipe()
	return f
}

func (f *udpFlow) Source() netip.AddrPort      { return netip.MustParseAddrPort("192.0.0.2:40000") }
func (f *udpFlow) Destination() netip.AddrPort { return f.dst }
func (f *udpFlow) Reject()                     { f.log.add("reject") }

func (f *udpFlow) Accept() (net.Conn, error) {
	f.log.add("accept")
	return f.ours, f.acceptErr
}

func TestUDPThatIsNotRelayed(t *testing.T) {
	down := func(c *proxy.Config) {
		c.Passthrough = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("network is unreachable")
		}
	}
	for _, tt := range []struct {
		name, dst string
		change    func(*proxy.Config)
		events    string
		reason    string // "none": no record
	}{
		{"to a mesh address", "10.96.0.10:443", nil, "reject", "refused_udp"},
		{"to a mesh address, as IPv4 in IPv6", "[::ffff:10.96.0.10]:443", nil, "reject", "refused_udp"},
		{"before the first Snapshot", "192.0.2.1:443", func(c *proxy.Config) { c.Catalog = catalog.New() }, "reject", "not_ready"},
		{"without a network", "192.0.2.1:443", down, "reject", "connect"},
		{"mDNS", "224.0.0.251:5353", nil, "", "none"},
		{"SSDP", "239.255.255.250:1900", nil, "", "none"},
		{"mDNS by IPv6", "[ff02::fb]:5353", nil, "", "none"},
		{"NetBIOS", "192.0.2.255:137", nil, "", "none"},
		{"broadcast", "255.255.255.255:67", nil, "", "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.change, echo, echoOnVIP)
			r.proxy.ServeUDP(t.Context(), newUDPFlow(r, tt.dst))
			if got := strings.Join(r.log.all(), ", "); got != tt.events {
				t.Errorf("events %s, want %s", got, tt.events)
			}
			if tt.reason == "none" {
				if n := len(r.records()); n != 0 {
					t.Errorf("%d records", n)
				}
				return
			}
			r.expectReason(tt.reason)
		})
	}
}

// relayedUDP is a flow to a resolver of the world whose other end is a kernel
// socket.
func relayedUDP(t *testing.T, r *rig, ctx context.Context) (*udpFlow, net.PacketConn) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	f := newUDPFlow(r, pc.LocalAddr().String())
	r.running.Go(func() { r.proxy.ServeUDP(ctx, f) })
	return f, pc
}

func realDial(c *proxy.Config) {
	c.Passthrough = func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}

func TestUDPIsRelayed(t *testing.T) {
	r := newRig(t, realDial, echo, echoOnVIP)
	f, pc := relayedUDP(t, r, t.Context())
	buf := make([]byte, 1<<16)
	for _, size := range []int{1, 0, 1200, 9000, 1} {
		send(t, f.client, strings.Repeat("q", size))
		n, from, err := pc.ReadFrom(buf)
		if err != nil || n != size {
			t.Fatalf("server got %d bytes, %v; want %d", n, err, size)
		}
		if _, err := pc.WriteTo(buf[:n], from); err != nil {
			t.Fatal(err)
		}
		if n, err := f.client.Read(buf); err != nil || n != size {
			t.Fatalf("client got %d bytes, %v; want %d", n, err, size)
		}
	}
	f.client.Close() // as when the flow has been idle for long
	m := r.record()
	if m["protocol"] != "udp" || m["bytes_in"] != float64(10202) || m["bytes_out"] != float64(10202) {
		t.Errorf("record %v", m)
	}
}

// A datagram larger than the buffer is lost whole, never cut, and the next one
// of its size arrives.
func TestUDPLargeDatagrams(t *testing.T) {
	r := newRig(t, realDial, echo, echoOnVIP)
	f, pc := relayedUDP(t, r, t.Context())
	buf := make([]byte, 1<<16)
	send(t, f.client, "hello")
	_, from, err := pc.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	large := []byte(strings.Repeat("x", 60_000))
	for range 2 {
		if _, err := pc.WriteTo(large, from); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.client.Read(buf); err != nil || n != len(large) {
		t.Errorf("got %d bytes, %v; want %d", n, err, len(large))
	}
	f.client.Close()
	r.record()
}

func TestUDPEndsWithContext(t *testing.T) {
	r := newRig(t, realDial, echo, echoOnVIP)
	ctx, cancel := context.WithCancel(t.Context())
	f, pc := relayedUDP(t, r, ctx)
	send(t, f.client, "hello")
	if _, _, err := pc.ReadFrom(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	cancel()
	expectEnd(t, f.client, io.EOF)
	r.expectReason("drained")
}

func TestUDPServerRefuses(t *testing.T) {
	r := newRig(t, realDial, echo, echoOnVIP)
	f, pc := relayedUDP(t, r, t.Context())
	_ = pc.Close() // its port is unreachable now
	send(t, f.client, "hello")
	expectEnd(t, f.client, io.EOF)
	r.expectReason("upstream_reset")
}
