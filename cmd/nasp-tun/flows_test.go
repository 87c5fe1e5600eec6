// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"
)

func TestClosedAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"192.0.0.2": true, "::ffff:192.0.0.3": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true,
		"::ffff:127.0.0.1": true, "0.0.0.0": true, "::": true, "::ffff:0.0.0.0": true,
		"192.0.0.8": false, "192.0.2.1": false, "10.96.0.10": false, "::ffff:10.96.0.10": false, "2001:db8::1": false,
	} {
		if closed(netip.MustParseAddr(text)) != want {
			t.Errorf("closed(%s) is not %v", text, want)
		}
	}
}
