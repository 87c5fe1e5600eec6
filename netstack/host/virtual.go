// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
)

// Sizes of the virtual ranges: room for 65,000 services, and a /64 as RFC 4193 has it.
const (
	virtualBits4 = 16
	virtualBits6 = 64
)

// maxVirtual is how many addresses of a range are given out, of either family.
const maxVirtual = 60_000

// virtualReserved is how many addresses at the beginning of a range are not given out: the
// first is the range's own name, the second the TUN's.
const virtualReserved = 16

// ErrVirtualFull is returned when a virtual range has no address left.
var ErrVirtualFull = errors.New("virtual range is full")

// virtualCandidates are tried from a place of the machine's own. Class E is nobody's
// LAN; Istio and Telepresence have 240.240 and 246.246 there, so those are not among
// them, and neither are 198.18/15 and 100.64/10, where other tools live. 10.x comes
// last, for hosts where policy forbids class E.
func virtualCandidates(seed uint64) []netip.Prefix {
	r := rand.New(rand.NewPCG(seed, 4193))
	var list []netip.Prefix
	for _, first := range []byte{251, 252, 253, 10} {
		for _, second := range r.Perm(256) {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{first, byte(second)}), virtualBits4))
		}
	}
	return list
}

// virtualULA returns a random range of RFC 4193.
func virtualULA(r *rand.Rand) netip.Prefix {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], r.Uint64())
	a[0] = 0xfd
	return netip.PrefixFrom(netip.AddrFrom16(a), virtualBits6)
}

// A virtualRange gives addresses of one family out and knows which real one each
// stands for. Its owner serializes.
type virtualRange struct {
	prefix netip.Prefix
	next   uint32
	slot   map[netip.Addr]uint32 // real -> place in the range
	used   map[uint32]netip.Addr // the other way
}

func newVirtualRange(p netip.Prefix) *virtualRange {
	return &virtualRange{prefix: p.Masked(), next: virtualReserved, slot: map[netip.Addr]uint32{}, used: map[uint32]netip.Addr{}}
}

// size is how many addresses the range has to give, of those that it may.
func (v *virtualRange) size() uint32 {
	if host := v.prefix.Addr().BitLen() - v.prefix.Bits(); host < 16 {
		return 1 << host
	}
	return maxVirtual
}

// at returns the address at a place of the range.
func (v *virtualRange) at(slot uint32) netip.Addr {
	if v.prefix.Addr().Is4() {
		a := v.prefix.Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+slot)
		return netip.AddrFrom4(a)
	}
	a := v.prefix.Addr().As16()
	binary.BigEndian.PutUint32(a[12:], binary.BigEndian.Uint32(a[12:])+slot)
	return netip.AddrFrom16(a)
}

// device is the TUN's own address.
func (v *virtualRange) device() netip.Addr { return v.at(1) }

// assign returns the address that stands for real, for ever the same one: what an
// application has cached stays right.
func (v *virtualRange) assign(real netip.Addr, live func(netip.Addr) bool) (netip.Addr, error) {
	if slot, ok := v.slot[real]; ok {
		return v.at(slot), nil
	}
	size := v.size()
	for range size {
		slot := v.next
		if v.next++; v.next >= size {
			v.next = virtualReserved
		}
		if slot >= size {
			continue
		}
		old, taken := v.used[slot]
		if taken && live(old) {
			continue
		}
		if taken { // by a service that is gone, longest first
			delete(v.slot, old)
		}
		v.slot[real], v.used[slot] = slot, real
		return v.at(slot), nil
	}
	return netip.Addr{}, fmt.Errorf("%w: %v", ErrVirtualFull, v.prefix)
}

// minVirtualBits4 and others bound what --virtual-cidr may say: too narrow holds no
// services, too wide hides what the host needs.
const (
	minVirtualBits4, maxVirtualBits4 = 12, 24
	minVirtualBits6, maxVirtualBits6 = 48, 112
)

// CheckVirtual says why a range cannot be the virtual one.
func CheckVirtual(p netip.Prefix) error {
	low, high := minVirtualBits4, maxVirtualBits4
	if p.Addr().Is6() {
		low, high = minVirtualBits6, maxVirtualBits6
	}
	switch a := p.Addr(); {
	case !p.IsValid() || a.Is4In6():
		return fmt.Errorf("virtual range %v: not a prefix", p)
	case p.Bits() < low || p.Bits() > high:
		return fmt.Errorf("virtual range %v: want a length of %d to %d", p, low, high)
	case unusable(p):
		return fmt.Errorf("virtual range %v: loopback, link-local and multicast addresses cannot be used", p)
	}
	return nil
}

// Limits of what may be captured as a whole. Half the Internet is never ours to take:
// whatever dies then, the machine is off the network.
const (
	minCaptureBits4 = 8
	minCaptureBits6 = 16
)

// CheckCapture says why a range may not be captured.
func CheckCapture(p netip.Prefix) error {
	least := minCaptureBits4
	if p.Addr().Is6() {
		least = minCaptureBits6
	}
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		return fmt.Errorf("capture %v: not a prefix", p)
	case p.Bits() < least:
		return fmt.Errorf("capture %v: wider than /%d; only ranges of a cluster are captured, never the Internet", p, least)
	case unusable(p):
		return fmt.Errorf("capture %v: loopback, link-local and multicast addresses are the host's own", p)
	}
	return nil
}

// hostOnly are the ranges that mean something else on each host.
var hostOnly = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

func unusable(p netip.Prefix) bool {
	for _, h := range hostOnly {
		if h.Overlaps(p) {
			return true
		}
	}
	return false
}
