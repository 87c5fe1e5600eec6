// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
)

// An echoResponder answers pings for addresses where somebody is, and says
// host unreachable for the others. Left to itself gVisor answers for any IPv6
// address and for no IPv4 address that it does not own (gvisor.dev/issue/8657).
//
// It stands where gVisor looks for a handler of echo requests, after IP
// options, extension headers and fragments have been dealt with.
type echoResponder struct {
	net   *stack.Stack
	there func(netip.Addr) bool

	answered, unreachable atomic.Uint64
}

func newEchoResponder(s *stack.Stack, there func(netip.Addr) bool) *echoResponder {
	e := &echoResponder{net: s, there: there}
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, e.handle4)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber6, e.handle6)
	return e
}

// handle4 returns true always: gVisor is to do nothing of its own.
func (e *echoResponder) handle4(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	// gVisor passes on an echo request with a wrong checksum too.
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo || !answerable(id, pkt) ||
		h.Checksum() != header.ICMPv4Checksum(h, pkt.Data().Checksum()) {
		return true
	}
	if !e.there(addr(id.LocalAddress)) {
		e.unreachable.Add(1)
		sendUnreachable(e.net, pkt, hostUnreachable)
		return true
	}
	e.answered.Add(1)
	_ = sendICMP(e.net, pkt, header.ICMPv4MinimumSize, pkt.Data().ToBuffer(), func(reply []byte, _ *stack.Route, data stack.PacketData) {
		copy(reply, h)
		r := header.ICMPv4(reply)
		r.SetType(header.ICMPv4EchoReply)
		r.SetChecksum(header.ICMPv4Checksum(r, data.Checksum()))
	})
	return true
}

func (e *echoResponder) handle6(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv6(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv6EchoMinimumSize || h.Type() != header.ICMPv6EchoRequest || !answerable(id, pkt) {
		return true
	}
	if !e.there(addr(id.LocalAddress)) {
		e.unreachable.Add(1)
		sendUnreachable(e.net, pkt, hostUnreachable)
		return true
	}
	e.answered.Add(1)
	_ = sendICMP(e.net, pkt, header.ICMPv6EchoMinimumSize, pkt.Data().ToBuffer(), func(reply []byte, route *stack.Route, data stack.PacketData) {
		copy(reply, h[:header.ICMPv6EchoMinimumSize])
		header.ICMPv6(reply).SetType(header.ICMPv6EchoReply)
		sumICMPv6(reply, route, data)
	})
	return true
}

// answerable reports whether a packet may be answered at all: it came from one
// machine and was for one (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
func answerable(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	return !pkt.NetworkPacketInfo.LocalAddressBroadcast &&
		unicast(addr(id.LocalAddress)) && unicast(addr(id.RemoteAddress))
}

func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// An unreachable is a kind of destination unreachable: the code differs
// between the two protocols, the type is 3 and 1.
type unreachable struct {
	v4 header.ICMPv4Code
	v6 header.ICMPv6Code
}

var (
	hostUnreachable = unreachable{header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable}
	portUnreachable = unreachable{header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable}
)

// How much of a packet an error quotes: as much as fits the packet that every
// machine accepts (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const (
	quote4 = header.IPv4MinimumProcessableDatagramSize - header.IPv4MinimumSize - header.ICMPv4MinimumSize
	quote6 = header.IPv6MinimumMTU - header.IPv6MinimumSize - header.ICMPv6ErrorHeaderSize
)

// sendUnreachable tells the sender of pkt that it cannot be delivered. The
// error comes from the address that pkt was for. There is no rate limit: the
// way back is as short as the way here, and one packet is answered with one.
func sendUnreachable(s *stack.Stack, pkt *stack.PacketBuffer, why unreachable) {
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		_ = sendICMP(s, pkt, header.ICMPv4MinimumSize, quote(pkt, quote4), func(msg []byte, _ *stack.Route, data stack.PacketData) {
			h := header.ICMPv4(msg)
			h.SetType(header.ICMPv4DstUnreachable)
			h.SetCode(why.v4)
			h.SetChecksum(header.ICMPv4Checksum(h, data.Checksum()))
		})
		return
	}
	_ = sendICMP(s, pkt, header.ICMPv6ErrorHeaderSize, quote(pkt, quote6), func(msg []byte, route *stack.Route, data stack.PacketData) {
		h := header.ICMPv6(msg)
		h.SetType(header.ICMPv6DstUnreachable)
		h.SetCode(why.v6)
		sumICMPv6(msg, route, data)
	})
}

// quote returns a copy of the beginning of pkt.
func quote(pkt *stack.PacketBuffer, limit int) buffer.Buffer {
	b := buffer.MakeWithData(pkt.NetworkHeader().Slice())
	_ = b.Append(buffer.NewViewWithData(pkt.TransportHeader().Slice()))
	if room := limit - int(b.Size()); room > 0 {
		data := pkt.Data().ToBuffer()
		data.Truncate(int64(room))
		b.Merge(&data)
	}
	b.Truncate(int64(limit))
	return b
}

func sumICMPv6(msg []byte, route *stack.Route, data stack.PacketData) {
	h := header.ICMPv6(msg)
	h.SetChecksum(0)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: h, Src: route.LocalAddress(), Dst: route.RemoteAddress(),
		PayloadCsum: data.Checksum(), PayloadLen: data.Size(),
	}))
}

// sendICMP sends a message back to where pkt came from, from the address that
// pkt was for. fill writes its header, of size bytes.
func sendICMP(s *stack.Stack, pkt *stack.PacketBuffer, size int, payload buffer.Buffer,
	fill func(msg []byte, route *stack.Route, data stack.PacketData),
) tcpip.Error {
	ip := pkt.Network()
	route, err := s.FindRoute(nicID, ip.DestinationAddress(), ip.SourceAddress(), pkt.NetworkProtocolNumber, false)
	if err != nil {
		payload.Release()
		return err
	}
	defer route.Release()
	reply := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + size,
		Payload:            payload,
	})
	defer reply.DecRef()
	proto := icmp.ProtocolNumber4
	if pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		proto = icmp.ProtocolNumber6
	}
	reply.TransportProtocolNumber = proto
	fill(reply.TransportHeader().Push(size), route, reply.Data())
	return route.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: route.DefaultTTL(), TOS: stack.DefaultTOS}, reply)
}
