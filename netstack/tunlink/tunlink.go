// SPDX-License-Identifier: Apache-2.0

// Package tunlink joins a gVisor stack to a TUN file descriptor without
// cutting packets up.
//
// With a vnet header the kernel hands over TCP superpackets of up to 64 KiB,
// not yet segmented and with only a partial checksum, and takes them back in
// the same form. An [Endpoint] keeps them whole in both directions: one readv
// and one writev move a packet, and no byte of payload is copied or summed in
// between. That is worth four to eight times the throughput of a link that
// works in packets of MTU size.
//
// Three details carry the weight:
//
//   - The first bytes of a packet are read into a view of their own. The stack
//     pulls headers up out of views that it shares, and pulling up clones the
//     whole chunk; a header view of 64 bytes is cheap to clone, the payload is
//     never touched.
//   - A small packet is copied out of the 64 KiB read buffer. The stack charges
//     a socket for the bytes of a packet and not for the buffer behind them,
//     so that a slow reader of small packets would pin 64 KiB for each.
//   - A packet whose vnet header vouches for nothing (it was forwarded into the
//     device by the kernel, from another machine) has its checksum verified
//     here, because the stack is told not to.
//
// Without a vnet header the endpoint reads and writes plain packets, gVisor
// computes and verifies checksums, and segments are cut inside the stack.
//
// The endpoint starts no goroutine. Whoever owns it calls [Endpoint.Run] to
// deliver packets, and [Endpoint.Shutdown] after the stack is gone.
package tunlink

import (
	"fmt"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// headLen is how many bytes of a packet go into the header view: IPv4
	// without options and TCP with timestamps, which is what the kernel sends
	// in bulk, so that the payload begins at the start of its own buffer.
	headLen = header.IPv4MinimumSize + 32

	// headLen6 is the same for IPv6. The version is known only after the read,
	// so the difference is moved over from the payload buffer.
	headLen6 = header.IPv6MinimumSize + 32

	// bodyLen is the size of the payload buffer: the largest pooled chunk of
	// gVisor, and more than the rest of the largest IP packet.
	bodyLen = 64 << 10

	// copybreak is the largest payload that is copied out of the read buffer.
	// A segment of MTU size is, a superpacket is not.
	copybreak = 4 << 10

	// gsoMaxSize is the largest packet that the stack may build. It is the
	// kernel's own default; gVisor's channel endpoint offers only half.
	gsoMaxSize = 65535

	// minMTU is the least MTU that IPv6 allows (RFC 8200 section 5).
	minMTU = header.IPv6MinimumMTU

	// maxMTU is the largest IP packet.
	maxMTU = 65535
)

// A Config describes the device behind a file descriptor.
type Config struct {
	// FD is the descriptor of the device. New takes it over, also when it fails.
	FD int
	// MTU is the device's MTU.
	MTU uint32
	// VnetHdr says that each packet is preceded by a 10 byte virtio_net_hdr.
	VnetHdr bool
	// TSO says that the device was told (TUNSETOFFLOAD) to hand over and take
	// TCP superpackets. It needs VnetHdr.
	TSO bool
	// OnSYN, when set, is called with the addresses of each TCP connection
	// request before the stack sees it. The identity is that of the endpoint
	// in this stack: local is the packet's destination.
	OnSYN func(proto tcpip.NetworkProtocolNumber, id stack.TransportEndpointID)
}

// An Endpoint is a [stack.LinkEndpoint] over a TUN device.
type Endpoint struct {
	// Set by New, then read-only.
	vnetHdr bool
	tso     bool
	onSYN   func(tcpip.NetworkProtocolNumber, stack.TransportEndpointID)
	dev     device

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher // guarded by mu
	closed     bool                    // guarded by mu; a write holds mu for reading, so that the descriptor cannot be reused under it

	mtu   atomic.Uint32
	stats counters
}

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)
)

// New returns an endpoint over the device that cfg describes, and takes over
// its descriptor. It starts nothing.
func New(cfg Config) (*Endpoint, error) {
	dev, err := openDevice(cfg.FD)
	if err != nil {
		return nil, err
	}
	if cfg.MTU < minMTU || cfg.MTU > maxMTU {
		dev.close()
		return nil, fmt.Errorf("tun mtu %d: not in %d..%d", cfg.MTU, minMTU, maxMTU)
	}
	if cfg.TSO && !cfg.VnetHdr {
		dev.close()
		return nil, fmt.Errorf("tun: segmentation offload needs a vnet header")
	}
	e := &Endpoint{vnetHdr: cfg.VnetHdr, tso: cfg.TSO, onSYN: cfg.OnSYN, dev: dev}
	e.mtu.Store(cfg.MTU)
	return e, nil
}

// MTU implements [stack.LinkEndpoint].
func (e *Endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU implements [stack.LinkEndpoint].
func (e *Endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// MaxHeaderLength implements [stack.LinkEndpoint]: IP is all there is.
func (e *Endpoint) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements [stack.LinkEndpoint]; a TUN device has none.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements [stack.LinkEndpoint].
func (e *Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// ARPHardwareType implements [stack.LinkEndpoint].
func (e *Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements [stack.LinkEndpoint].
func (e *Endpoint) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements [stack.LinkEndpoint].
func (e *Endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }

// SetOnCloseAction implements [stack.LinkEndpoint].
func (e *Endpoint) SetOnCloseAction(func()) {}

// Close implements [stack.LinkEndpoint]. The descriptor stays open until
// [Endpoint.Shutdown], since the stack may still be sending resets.
func (e *Endpoint) Close() {}

// Wait implements [stack.LinkEndpoint]. The endpoint has no goroutine.
func (e *Endpoint) Wait() {}

// Capabilities implements [stack.LinkEndpoint]. With a vnet header the kernel
// or this package has verified every checksum, without one gVisor does.
func (e *Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	if e.vnetHdr {
		return stack.CapabilityRXChecksumOffload
	}
	return stack.CapabilityNone
}

// GSOMaxSize implements [stack.GSOEndpoint].
func (e *Endpoint) GSOMaxSize() uint32 { return gsoMaxSize }

// SupportedGSO implements [stack.GSOEndpoint]. Where the device takes no
// superpackets, the stack still works in them and cuts them up at its lower
// edge, which costs less than sending each segment on its own.
func (e *Endpoint) SupportedGSO() stack.SupportedGSO {
	if e.tso {
		return stack.HostGSOSupported
	}
	return stack.GVisorGSOSupported
}

// Attach implements [stack.LinkEndpoint].
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	e.dispatcher = d
	e.mu.Unlock()
}

// IsAttached implements [stack.LinkEndpoint].
func (e *Endpoint) IsAttached() bool { return e.attached() != nil }

func (e *Endpoint) attached() stack.NetworkDispatcher {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher
}

func (e *Endpoint) isClosed() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.closed
}

// Interrupt makes [Endpoint.Run] return. The endpoint still writes.
func (e *Endpoint) Interrupt() { e.dev.interrupt() }

// Shutdown closes the descriptor, once no write is using it. Later packets are
// dropped. It may be called more than once.
func (e *Endpoint) Shutdown() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	return e.dev.close()
}
