// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// behind puts a packet behind a vnet header.
func behind(flags, gso byte, p []byte) []byte {
	return append([]byte{flags, gso, 0, 0, 0, 0, 0, 0, 0, 0}, p...)
}

// seedPackets are packets of each kind, right and wrong.
func seedPackets() (seeds [][]byte) {
	client4, client6 := netip.AddrPortFrom(netstacktest.Addr4, 40000), netip.AddrPortFrom(netstacktest.Addr6, 40000)
	for _, s := range []netstacktest.Segment{
		{SYN: true}, {ACK: true}, {RST: true}, {SYN: true, ACK: true}, {ACK: true, Payload: make([]byte, 5000)},
	} {
		for _, a := range [][2]netip.AddrPort{{client4, service4}, {client6, service6}} {
			s.Src, s.Dst = a[0], a[1]
			seeds = append(seeds, behind(0, 0, s.Packet()), behind(1, 1, s.Packet()))
		}
	}
	return append(seeds,
		behind(0, 0, netstacktest.Datagram(client4, service4, []byte("x"))),
		behind(0, 0, netstacktest.Datagram(client6, service6, []byte("x"))),
		behind(2, 0, []byte{0x60, 0, 0, 0, 0, 16, 0, 64, 39: 1, 40: 43, 41: 0, 55: 0}), // extension headers
		behind(2, 0, []byte{0x60, 0, 0, 0, 0, 8, 44, 64, 39: 1, 40: 58, 47: 1}),        // a fragment
		behind(2, 0, []byte{0x46, 0, 0, 24, 0, 0, 0x20, 0, 64, 1, 23: 0}),              // options, more fragments
		behind(2, 0, []byte{0x45, 0, 0xff, 0xff, 0, 0, 0, 0, 64, 6, 19: 1}),            // longer than it is
		[]byte{1, 2, 3},
	)
}

// FuzzPacket: whatever comes off the device, the stack goes on to serve.
func FuzzPacket(f *testing.F) {
	for _, p := range seedPackets() {
		f.Add(p)
	}
	there := netip.MustParseAddr("203.0.113.99")
	c, _ := start(f, handler{
		tcp: func(_ context.Context, fl *netstack.TCPFlow) {
			if conn, err := fl.Accept(); err == nil {
				io.Copy(conn, conn)
			}
		},
		udp: func(_ context.Context, fl *netstack.UDPFlow) {
			if conn, err := fl.Accept(); err == nil {
				b := make([]byte, 1500)
				n, _ := conn.Read(b)
				conn.Write(b[:n])
			}
		},
		echo: func(a netip.Addr) bool { return a == there },
	}, netstacktest.Options{}, netstack.Limits{TCPInFlight: 64, TCPFlows: 64, UDPSessions: 64})

	probe := behind(0, 0, netstacktest.Echo(netstacktest.Addr4, there))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 || len(p) > 70000 {
			return // the end of the device, or more than it can carry
		}
		if err := c.Inject(p); err != nil {
			t.Fatal(err)
		}
		// The next packet is read when this one has been dealt with.
		if err := c.Inject(probe); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for {
			m, err := c.NextICMP(ctx)
			if err != nil {
				t.Fatalf("no answer after the packet: %v", err)
			}
			if m.Src == there && m.Type == 0 {
				return
			}
		}
	})
}
