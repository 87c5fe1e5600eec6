// SPDX-License-Identifier: Apache-2.0

package tunlink

import (
	"context"
	"errors"
	"fmt"
	"os"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A reader holds the buffers that the next packet is read into.
type reader struct {
	e    *Endpoint
	vnet [vnetHdrLen]byte
	head [headLen]byte
	body *buffer.View
	bufs *readBuffers
}

func newReader(e *Endpoint) *reader {
	r := &reader{e: e, body: buffer.NewViewSize(bodyLen)}
	r.bufs = newReadBuffers(r.vnet[:], r.head[:], e.vnetHdr)
	r.bufs.setBody(r.body.AsSlice())
	return r
}

// Run reads packets and delivers them to the stack, until ctx ends (it returns
// nil), [Endpoint.Interrupt] is called, or the device fails. Packets are
// delivered on the calling goroutine, one after the other.
func (e *Endpoint) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, e.Interrupt)
	defer stop()
	r := newReader(e)
	defer func() { r.body.Release() }()
	for {
		n, err := e.dev.read(r.bufs)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || e.isClosed() {
				return nil
			}
			return fmt.Errorf("read tun: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("read tun: device is gone")
		}
		r.packet(n)
	}
}

// packet takes the packet of n bytes that has just been read.
func (r *reader) packet(n int) {
	e := r.e
	vouched := true // by gVisor itself, without a vnet header
	if e.vnetHdr {
		if n -= vnetHdrLen; n < 0 {
			e.stats.rxMalformed.Add(1)
			return
		}
		var ok bool
		if ok, vouched = offloaded(&r.vnet); !ok {
			e.stats.rxOffload.Add(1)
			return
		}
	}
	e.stats.rxPackets.Add(1)
	e.stats.rxBytes.Add(uint64(n))

	proto, ok := protocol(r.head[:min(n, headLen)])
	if !ok {
		e.stats.rxMalformed.Add(1)
		return
	}
	head := r.headView(proto, n)
	moved := head.Size() - min(n, headLen) // bytes of the body that are in the header view
	rest := r.body.AsSlice()[moved:][:n-head.Size()]
	if !vouched && !checksumValid(head.AsSlice(), rest) {
		head.Release()
		e.stats.rxChecksum.Add(1)
		return
	}
	if e.onSYN != nil {
		reportSYN(e.onSYN, proto, head.AsSlice(), n)
	}
	r.deliver(proto, head, moved, rest)
}

// protocol tells IPv4 from IPv6 by the version field: a TUN packet carries no
// other mark of it.
func protocol(head []byte) (tcpip.NetworkProtocolNumber, bool) {
	switch {
	case len(head) >= header.IPv4MinimumSize && head[0]>>4 == header.IPv4Version:
		return header.IPv4ProtocolNumber, true
	case len(head) >= header.IPv6MinimumSize && head[0]>>4 == header.IPv6Version:
		return header.IPv6ProtocolNumber, true
	}
	return 0, false
}

// headView returns a view of the packet's headers.
func (r *reader) headView(proto tcpip.NetworkProtocolNumber, n int) *buffer.View {
	if n <= headLen || proto == header.IPv4ProtocolNumber {
		return buffer.NewViewWithData(r.head[:min(n, headLen)])
	}
	v := buffer.NewView(headLen6)
	_, _ = v.Write(r.head[:])
	_, _ = v.Write(r.body.AsSlice()[:min(n, headLen6)-headLen])
	return v
}

// deliver hands the packet to the stack and makes ready for the next read.
func (r *reader) deliver(proto tcpip.NetworkProtocolNumber, head *buffer.View, moved int, rest []byte) {
	payload := buffer.MakeWithView(head)
	switch {
	case len(rest) == 0:
	case len(rest) <= copybreak:
		_ = payload.Append(buffer.NewViewWithData(rest))
	default:
		body := r.body
		body.CapLength(moved + len(rest))
		body.TrimFront(moved)
		_ = payload.Append(body)
		r.body = buffer.NewViewSize(bodyLen)
		r.bufs.setBody(r.body.AsSlice())
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
	if d := r.e.attached(); d != nil {
		d.DeliverNetworkPacket(proto, pkt)
	}
	pkt.DecRef()
}

// reportSYN calls report if the packet asks for a connection.
func reportSYN(report func(tcpip.NetworkProtocolNumber, stack.TransportEndpointID), proto tcpip.NetworkProtocolNumber, head []byte, size int) {
	// The cheap test first: this runs for each packet.
	const protoOffset4, protoOffset6 = 9, 6
	if at := map4or6(proto, protoOffset4, protoOffset6); head[at] != byte(header.TCPProtocolNumber) {
		return
	}
	t, ok := locate(head, size)
	if !ok || t.fragment || len(head)-t.offset < header.TCPMinimumSize {
		return
	}
	h := header.TCP(head[t.offset:])
	if h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return
	}
	report(proto, stack.TransportEndpointID{
		LocalPort: h.DestinationPort(), LocalAddress: tcpip.AddrFromSlice(t.dst),
		RemotePort: h.SourcePort(), RemoteAddress: tcpip.AddrFromSlice(t.src),
	})
}

func map4or6(proto tcpip.NetworkProtocolNumber, v4, v6 int) int {
	if proto == header.IPv4ProtocolNumber {
		return v4
	}
	return v6
}
