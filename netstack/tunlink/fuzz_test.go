// SPDX-License-Identifier: Apache-2.0

package tunlink

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// FuzzHeaders: no packet is beyond the parser of headers, wherever the read
// cut it in two, and the verdict does not depend on where that was.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0xfe, 0xd1, 192, 0, 2, 1, 203, 0, 113, 7, 0, 9, 0, 80, 0, 8, 0, 0})
	f.Add([]byte{0x4f, 0, 0, 61, 0, 0, 0, 0, 64, 6, 60: 1})
	f.Add([]byte{0x60, 0, 0, 0, 0, 20, 6, 64, 39: 7, 59: 1})
	f.Add([]byte{0x60, 0, 0, 0, 0, 32, 0, 64, 39: 7, 40: 43, 41: 0, 48: 60, 49: 0, 56: 44, 71: 1})
	f.Add(bytes.Repeat([]byte{0x60}, 200))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > maxMTU {
			return
		}
		whole := checksumValid(p, nil)
		for _, cut := range []int{headLen, headLen6} {
			if len(p) <= cut {
				continue
			}
			if got := checksumValid(p[:cut], p[cut:]); got != whole {
				t.Errorf("valid is %v when cut at %d, else %v", got, cut, whole)
			}
		}
		if proto, ok := protocol(p); ok {
			reportSYN(func(tcpip.NetworkProtocolNumber, stack.TransportEndpointID) {}, proto, p[:min(len(p), headLen6)], len(p))
		}
	})
}
