// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// A ping is answered where somebody is, and host unreachable elsewhere, also
// when it comes in fragments.
func TestEcho(t *testing.T) {
	there := map[netip.Addr]bool{service4.Addr(): true, service6.Addr(): true}
	for _, l := range []netstacktest.Options{{}, {Plain: true}} {
		c, s := start(t, handler{echo: func(a netip.Addr) bool { return there[a] }}, l, netstack.Limits{})
		for _, tt := range []struct {
			dst       string
			typ, code uint8
		}{
			{service4.Addr().String(), 0, 0},
			{service6.Addr().String(), 129, 0},
			{"203.0.113.8", 3, 1},
			{"2001:db8:7::8", 1, 3},
		} {
			for _, size := range []int{0, 56, 1400, 8000} {
				t.Run(fmt.Sprintf("plain=%v %s %d", l.Plain, tt.dst, size), func(t *testing.T) {
					dst := netip.MustParseAddr(tt.dst)
					m, err := c.Ping(t.Context(), dst, size)
					if err != nil {
						t.Fatal(err)
					}
					if m.Src != dst || m.Type != tt.typ || m.Code != tt.code {
						t.Fatalf("answer %d/%d from %v, want %d/%d", m.Type, m.Code, m.Src, tt.typ, tt.code)
					}
					if there[dst] && !bytes.HasPrefix(counting(size), m.Payload) || size <= 1400 && there[dst] && len(m.Payload) != size {
						t.Error("the payload came back changed")
					}
				})
			}
		}
		if got := s.Stats().ICMP; got.EchoAnswered != 8 || got.EchoUnreachable != 8 {
			t.Errorf("stats %+v", got)
		}
	}
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}
