// SPDX-License-Identifier: Apache-2.0

package netstacktest

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// VnetHdrLen is the length of the header before each packet of a device that
// has one. A header of zeroes vouches for nothing: the checksums of the packet
// have to be right.
const VnetHdrLen = 10

// A Segment is a TCP segment that no connection of the client sent.
type Segment struct {
	Src, Dst      netip.AddrPort
	Seq, Ack      uint32
	SYN, ACK, RST bool
	Payload       []byte
}

// Packet returns the segment as an IP packet with the right checksums.
func (s Segment) Packet() []byte {
	size := header.TCPMinimumSize + len(s.Payload)
	p, transport := ipPacket(s.Src.Addr(), s.Dst.Addr(), header.TCPProtocolNumber, size)
	h := header.TCP(transport)
	copy(transport[header.TCPMinimumSize:], s.Payload)
	h.Encode(&header.TCPFields{
		SrcPort: s.Src.Port(), DstPort: s.Dst.Port(), SeqNum: s.Seq, AckNum: s.Ack,
		DataOffset: header.TCPMinimumSize, Flags: s.flags(), WindowSize: 65535,
	})
	h.SetChecksum(^checksum.Checksum(transport, pseudoSum(s.Src.Addr(), s.Dst.Addr(), header.TCPProtocolNumber, size)))
	return p
}

func (s Segment) flags() header.TCPFlags {
	var f header.TCPFlags
	for flag, set := range map[header.TCPFlags]bool{header.TCPFlagSyn: s.SYN, header.TCPFlagAck: s.ACK, header.TCPFlagRst: s.RST} {
		if set {
			f |= flag
		}
	}
	return f
}

// Datagram returns a UDP datagram as an IP packet with the right checksums.
func Datagram(src, dst netip.AddrPort, payload []byte) []byte {
	size := header.UDPMinimumSize + len(payload)
	p, transport := ipPacket(src.Addr(), dst.Addr(), header.UDPProtocolNumber, size)
	copy(transport[header.UDPMinimumSize:], payload)
	h := header.UDP(transport)
	h.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(size)})
	h.SetChecksum(^checksum.Checksum(transport, pseudoSum(src.Addr(), dst.Addr(), header.UDPProtocolNumber, size)))
	return p
}

// Echo returns an echo request from one IPv4 address to another.
func Echo(src, dst netip.Addr) []byte {
	p, msg := ipPacket(src, dst, header.ICMPv4ProtocolNumber, header.ICMPv4MinimumSize)
	h := header.ICMPv4(msg)
	h.SetType(header.ICMPv4Echo)
	h.SetChecksum(header.ICMPv4Checksum(h, 0))
	return p
}

// ipPacket returns a packet with its IP header, and the part behind that.
func ipPacket(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, size int) (packet, transport []byte) {
	s, d := tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice())
	if src.Is4() {
		packet = make([]byte, header.IPv4MinimumSize+size)
		h := header.IPv4(packet)
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(proto), SrcAddr: s, DstAddr: d})
		h.SetChecksum(^h.CalculateChecksum())
		return packet, packet[header.IPv4MinimumSize:]
	}
	packet = make([]byte, header.IPv6MinimumSize+size)
	header.IPv6(packet).Encode(&header.IPv6Fields{PayloadLength: uint16(size), TransportProtocol: proto, HopLimit: 64, SrcAddr: s, DstAddr: d})
	return packet, packet[header.IPv6MinimumSize:]
}

func pseudoSum(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, size int) uint16 {
	return header.PseudoHeaderChecksum(proto, tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), uint16(size))
}

// SendTCP sends a segment to the stack under test.
func (c *Client) SendTCP(s Segment) {
	c.tb.Helper()
	c.SendPacket(s.Packet())
}

// SendPacket sends an IP packet, behind a vnet header of zeroes if the device
// has one.
func (c *Client) SendPacket(p []byte) {
	c.tb.Helper()
	if c.device.VnetHdr {
		p = append(make([]byte, VnetHdrLen), p...)
	}
	if err := c.Inject(p); err != nil {
		c.tb.Fatal(err)
	}
}
