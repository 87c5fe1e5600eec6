// SPDX-License-Identifier: Apache-2.0

package netstacktest

import (
	"context"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"

	"github.com/nasp-tun/nasp-tun/netstack/tunlink"
)

// A Message is an ICMP message that reached the client.
type Message struct {
	Src     netip.Addr
	Type    uint8
	Code    uint8
	Payload []byte // what follows the header of 8 bytes, in the first fragment
}

// A tap is the client's link, which shows the ICMP messages that come in.
type tap struct {
	*tunlink.Endpoint
	icmp chan Message // what finds it full is lost
}

// Attach implements [stack.LinkEndpoint].
func (t *tap) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		t.Endpoint.Attach(nil)
		return
	}
	t.Endpoint.Attach(&tapped{NetworkDispatcher: d, icmp: t.icmp})
}

type tapped struct {
	stack.NetworkDispatcher
	icmp chan Message
}

// DeliverNetworkPacket implements [stack.NetworkDispatcher].
func (t *tapped) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	view := pkt.ToView()
	defer view.Release()
	if m, ok := parseICMP(proto, view.AsSlice()); ok {
		select {
		case t.icmp <- m:
		default:
		}
	}
	t.NetworkDispatcher.DeliverNetworkPacket(proto, pkt)
}

// parseICMP takes whole packets and first fragments.
func parseICMP(proto tcpip.NetworkProtocolNumber, p []byte) (Message, bool) {
	var (
		src   tcpip.Address
		trans tcpip.TransportProtocolNumber
	)
	if proto == header.IPv4ProtocolNumber {
		ip := header.IPv4(p)
		if !ip.IsValid(len(p)) || ip.FragmentOffset() != 0 {
			return Message{}, false
		}
		src, trans, p = ip.SourceAddress(), ip.TransportProtocol(), ip.Payload()
	} else {
		ip := header.IPv6(p)
		if !ip.IsValid(len(p)) {
			return Message{}, false
		}
		src, trans, p = ip.SourceAddress(), tcpip.TransportProtocolNumber(ip.NextHeader()), ip.Payload()
		if trans == header.IPv6FragmentHeader && len(p) >= header.IPv6FragmentHeaderSize {
			if f := header.IPv6Fragment(p); f.FragmentOffset() == 0 {
				trans, p = f.TransportProtocol(), p[header.IPv6FragmentHeaderSize:]
			}
		}
	}
	if trans != icmp.ProtocolNumber4 && trans != icmp.ProtocolNumber6 || len(p) < 8 {
		return Message{}, false
	}
	a, _ := netip.AddrFromSlice(src.AsSlice())
	return Message{Src: a, Type: p[0], Code: p[1], Payload: append([]byte(nil), p[8:]...)}, true
}

// Ping sends an echo request with a payload of size bytes and returns the
// first ICMP message that comes in.
func (c *Client) Ping(ctx context.Context, dst netip.Addr, size int) (Message, error) {
	c.SendEcho(dst, size)
	return c.NextICMP(ctx)
}

// NextICMP returns the next ICMP message that comes in.
func (c *Client) NextICMP(ctx context.Context) (Message, error) {
	select {
	case m := <-c.link.icmp:
		return m, nil
	case <-ctx.Done():
		return Message{}, context.Cause(ctx)
	}
}

// SendEcho sends an echo request whose payload is 0, 1, 2 and so on.
func (c *Client) SendEcho(dst netip.Addr, size int) {
	c.tb.Helper()
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(i)
	}
	src, proto, trans := Addr4, network(dst), tcpip.TransportProtocolNumber(icmp.ProtocolNumber4)
	if dst.Is6() {
		src, trans = Addr6, icmp.ProtocolNumber6
	}
	route, terr := c.net.FindRoute(nicID, tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), proto, false)
	if terr != nil {
		c.tb.Fatal(terr)
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: int(route.MaxHeaderLength()) + 8, Payload: buffer.MakeWithData(payload)})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = trans
	h := pkt.TransportHeader().Push(8)
	if dst.Is4() {
		icmp4 := header.ICMPv4(h)
		icmp4.SetType(header.ICMPv4Echo)
		icmp4.SetIdent(7)
		icmp4.SetChecksum(header.ICMPv4Checksum(icmp4, pkt.Data().Checksum()))
	} else {
		icmp6 := header.ICMPv6(h)
		icmp6.SetType(header.ICMPv6EchoRequest)
		icmp6.SetIdent(7)
		icmp6.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: icmp6, Src: route.LocalAddress(), Dst: route.RemoteAddress(),
			PayloadCsum: pkt.Data().Checksum(), PayloadLen: size,
		}))
	}
	if terr := route.WritePacket(stack.NetworkHeaderParams{Protocol: trans, TTL: 64}, pkt); terr != nil {
		c.tb.Fatal(terr)
	}
}
