// SPDX-License-Identifier: Apache-2.0

package tunlink

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// WritePackets implements [stack.LinkEndpoint]: one writev for each packet, on
// the calling goroutine. It may be called concurrently.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for n, pkt := range pkts.AsSlice() {
		if err := e.writePacket(pkt); err != nil {
			return n, err
		}
	}
	return pkts.Len(), nil
}

// An outgoing holds the parts of one packet while it is written. They are
// pooled, since what a system call is told by pointer lives on the heap.
type outgoing struct {
	vnet [vnetHdrLen]byte
	bufs writeBuffers
}

var outgoingPool = sync.Pool{New: func() any { return new(outgoing) }}

// writePacket is called with e.mu held for reading.
func (e *Endpoint) writePacket(pkt *stack.PacketBuffer) tcpip.Error {
	if e.closed {
		e.stats.txFailed.Add(1)
		return &tcpip.ErrClosedForSend{}
	}
	out := outgoingPool.Get().(*outgoing)
	defer outgoingPool.Put(out)
	defer out.bufs.reset()
	if e.vnetHdr {
		fillVnetHdr(&out.vnet, pkt)
		out.bufs.add(out.vnet[:])
	}
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) { // headroom that no header took, or an empty view
			skip -= len(b)
			continue
		}
		if out.bufs.full() {
			return e.writeLinear(pkt, out)
		}
		out.bufs.add(b[skip:])
		skip = 0
	}
	return e.finish(pkt, e.dev.write(&out.bufs))
}

// writeLinear copies the packet together first. It is for a packet of a
// thousand scraps, such as one-byte writes make that the stack merged.
func (e *Endpoint) writeLinear(pkt *stack.PacketBuffer, out *outgoing) tcpip.Error {
	e.stats.txLinearised.Add(1)
	v := pkt.ToView()
	defer v.Release()
	out.bufs.reset()
	if e.vnetHdr {
		out.bufs.add(out.vnet[:])
	}
	out.bufs.add(v.AsSlice())
	return e.finish(pkt, e.dev.write(&out.bufs))
}

func (e *Endpoint) finish(pkt *stack.PacketBuffer, err error) tcpip.Error {
	switch {
	case err == nil:
		e.stats.txPackets.Add(1)
		e.stats.txBytes.Add(uint64(pkt.Size()))
		return nil
	case queueFull(err):
		e.stats.txNoBuffer.Add(1)
		return &tcpip.ErrNoBufferSpace{}
	}
	e.stats.txFailed.Add(1)
	return &tcpip.ErrNetworkUnreachable{}
}
