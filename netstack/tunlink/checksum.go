// SPDX-License-Identifier: Apache-2.0

package tunlink

import (
	"encoding/binary"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// maxExtensions bounds the walk over IPv6 extension headers, which a packet
// can chain without end.
const maxExtensions = 8

// A transport says where the transport header of a packet is.
type transport struct {
	proto    tcpip.TransportProtocolNumber
	offset   int // from the start of the packet
	end      int // of the IP packet; the device may pad
	fragment bool
	src, dst []byte
}

// locate finds the transport header of the packet that begins with p. p may
// hold only the packet's first bytes, size is its whole length. It returns
// false for what is not a well-formed IP packet, or where the headers go on
// beyond p.
func locate(p []byte, size int) (transport, bool) {
	if len(p) == 0 {
		return transport{}, false
	}
	switch p[0] >> 4 {
	case header.IPv4Version:
		return locate4(p, size)
	case header.IPv6Version:
		return locate6(p, size)
	}
	return transport{}, false
}

func locate4(p []byte, size int) (transport, bool) {
	if len(p) < header.IPv4MinimumSize {
		return transport{}, false
	}
	h := header.IPv4(p)
	t := transport{
		proto:    tcpip.TransportProtocolNumber(h.Protocol()),
		offset:   int(h.HeaderLength()),
		end:      int(h.TotalLength()),
		fragment: h.More() || h.FragmentOffset() != 0,
		src:      p[12:16],
		dst:      p[16:20],
	}
	ok := t.offset >= header.IPv4MinimumSize && t.offset <= len(p) && t.offset <= t.end && t.end <= size
	return t, ok
}

func locate6(p []byte, size int) (transport, bool) {
	if len(p) < header.IPv6MinimumSize {
		return transport{}, false
	}
	t := transport{
		offset: header.IPv6MinimumSize,
		end:    header.IPv6MinimumSize + int(binary.BigEndian.Uint16(p[4:])),
		src:    p[8:24],
		dst:    p[24:40],
	}
	if t.end > size {
		return transport{}, false
	}
	next := p[6]
	for range maxExtensions {
		switch header.IPv6ExtensionHeaderIdentifier(next) {
		case header.IPv6HopByHopOptionsExtHdrIdentifier, header.IPv6RoutingExtHdrIdentifier,
			header.IPv6DestinationOptionsExtHdrIdentifier:
		case header.IPv6FragmentExtHdrIdentifier:
			t.fragment = true
			return t, true
		default:
			t.proto = tcpip.TransportProtocolNumber(next)
			return t, t.offset <= t.end
		}
		if t.offset+2 > len(p) {
			return transport{}, false
		}
		next, t.offset = p[t.offset], t.offset+8*(1+int(p[t.offset+1]))
		if t.offset > len(p) || t.offset > t.end {
			return transport{}, false
		}
	}
	return transport{}, false
}

// checksumValid verifies the IPv4 header and the TCP or UDP checksum of a
// packet, given as its first bytes and the rest. Other protocols (ICMP) the
// stack verifies always, and a fragment can be judged by nobody: only the
// whole datagram has a checksum.
func checksumValid(head, rest []byte) bool {
	size := len(head) + len(rest)
	t, ok := locate(head, size)
	switch {
	case ok:
	case len(rest) > 0: // options or extension headers that go on in the rest
		return checksumValid(slices.Concat(head, rest), nil)
	default:
		return false
	}
	if head[0]>>4 == header.IPv4Version && checksum.Checksum(head[:t.offset], 0) != 0xffff {
		return false
	}
	if t.fragment {
		return true
	}
	switch t.proto {
	case header.TCPProtocolNumber:
	case header.UDPProtocolNumber:
		if h := head[t.offset:]; head[0]>>4 == header.IPv4Version && len(h) >= header.UDPMinimumSize && h[6] == 0 && h[7] == 0 {
			return true // the sender summed nothing (RFC 768)
		}
	default:
		return true
	}
	return segmentSum(t, head, rest) == 0xffff
}

// segmentSum sums pseudo-header, transport header and payload.
func segmentSum(t transport, head, rest []byte) uint16 {
	length := t.end - t.offset
	sum := header.PseudoHeaderChecksum(t.proto, tcpip.AddrFromSlice(t.src), tcpip.AddrFromSlice(t.dst), uint16(length))
	first := head[t.offset:min(len(head), t.end)]
	sum = checksum.Checksum(first, sum)
	if length -= len(first); length > 0 {
		// Bytes pair up from the start of the segment; a head of odd length
		// would shift the pairs of the rest.
		if len(first)%2 == 1 {
			sum = checksum.Combine(sum, uint16(rest[0]))
			rest, length = rest[1:], length-1
		}
		sum = checksum.Checksum(rest[:length], sum)
	}
	return sum
}
