// SPDX-License-Identifier: Apache-2.0

package tunlink

import "sync/atomic"

// Stats counts the packets of an endpoint. A superpacket is one packet, so
// that bytes per packet tell whether segmentation offload works: under bulk it
// is above 40 KB where it does, and the MTU where it does not.
type Stats struct {
	RxPackets, RxBytes uint64
	TxPackets, TxBytes uint64

	RxMalformed  uint64 // no IP packet, or shorter than its header says
	RxChecksum   uint64 // wrong checksum, in a packet that nothing vouched for
	RxOffload    uint64 // an offload that was not asked for (UDP segmentation)
	TxNoBuffer   uint64 // the device's queue was full
	TxFailed     uint64 // the device refused the packet, or is closed
	TxLinearised uint64 // sent, but its parts were too many for one writev
}

// RxMean returns the mean size of the packets read.
func (s Stats) RxMean() uint64 { return s.RxBytes / max(s.RxPackets, 1) }

// TxMean returns the mean size of the packets written.
func (s Stats) TxMean() uint64 { return s.TxBytes / max(s.TxPackets, 1) }

type counters struct {
	rxPackets, rxBytes, txPackets, txBytes atomic.Uint64
	rxMalformed, rxChecksum, rxOffload     atomic.Uint64
	txNoBuffer, txFailed, txLinearised     atomic.Uint64
}

// Stats returns the counts so far.
func (e *Endpoint) Stats() Stats {
	c := &e.stats
	return Stats{
		RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
		TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(),
		RxMalformed: c.rxMalformed.Load(), RxChecksum: c.rxChecksum.Load(), RxOffload: c.rxOffload.Load(),
		TxNoBuffer: c.txNoBuffer.Load(), TxFailed: c.txFailed.Load(), TxLinearised: c.txLinearised.Load(),
	}
}
