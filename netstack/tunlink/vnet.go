// SPDX-License-Identifier: Apache-2.0

package tunlink

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The virtio_net_hdr of linux/virtio_net.h, in the byte order of the machine:
// flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const (
	vnetHdrLen = 10

	flagNeedsCsum = 1 // the checksum covers the pseudo-header only
	flagDataValid = 2 // the checksum was verified

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoECN   = 0x80 // may be added to either: the superpacket has CWR set
)

// offloaded reports whether the header announces a packet that the stack can
// take, and whether anybody but us has looked after its checksum.
func offloaded(h *[vnetHdrLen]byte) (ok, vouched bool) {
	switch h[1] &^ gsoECN {
	case gsoNone, gsoTCPv4, gsoTCPv6:
		return true, h[0]&(flagNeedsCsum|flagDataValid) != 0
	}
	return false, false
}

// fillVnetHdr describes an outgoing packet to the kernel. What is not TCP data
// (a reset, UDP, ICMP) has a full checksum and gets a header of zeroes.
func fillVnetHdr(h *[vnetHdrLen]byte, pkt *stack.PacketBuffer) {
	*h = [vnetHdrLen]byte{}
	gso := &pkt.GSOOptions
	if gso.Type != stack.GSOTCPv4 && gso.Type != stack.GSOTCPv6 {
		return
	}
	ne := binary.NativeEndian
	ne.PutUint16(h[2:], uint16(pkt.HeaderSize()))
	if gso.NeedsCsum {
		h[0] = flagNeedsCsum
		ne.PutUint16(h[6:], gso.L3HdrLen)
		ne.PutUint16(h[8:], gso.CsumOffset)
	}
	if pkt.Data().Size() <= int(gso.MSS) {
		return
	}
	h[1] = gsoTCPv4
	if gso.Type == stack.GSOTCPv6 {
		h[1] = gsoTCPv6
	}
	ne.PutUint16(h[4:], gso.MSS)
}
