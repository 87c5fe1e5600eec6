// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net/netip"
	"testing"
)

func TestCollisions(t *testing.T) {
	ownHost(t, `vpn tun0
		ip route add 10.0.0.0/8 dev tun0
		ip route add 10.1.0.0/16 dev up0 proto 99
		ip route add 203.0.113.0/25 dev tun0 table 33; ip rule add pref 300 to 203.0.113.0/24 lookup 33
		ip route add 203.0.113.128/25 dev tun0 table 34
		ip -6 route add fd00:10:96::/48 dev tun0
		ip -6 route add fc00::/7 dev up0
		ip route add blackhole 198.51.100.0/24
		ip route add unreachable default metric 9999
		ip route add 198.18.0.0/15 nexthop dev up0 nexthop dev tun0`)
	c := openTestCapture(t, CaptureConfig{})
	for addr, want := range map[string]string{
		"10.96.0.10":       "10.0.0.0/8 dev tun0",
		"10.1.2.3":         "10.1.0.0/16 dev up0", // whoever made it
		"203.0.113.1":      "203.0.113.0/25 dev tun0 table 33",
		"203.0.113.129":    "", // in a table to which no rule leads now
		"192.0.2.2":        "192.0.2.2/32 dev up0, an address of this host",
		"192.0.2.9":        "192.0.2.0/24 dev up0",
		"192.0.2.255":      "192.0.2.255/32 dev up0, an address of this host",
		"198.18.0.1":       "198.18.0.0/15", // by several devices
		"198.51.100.1":     "",              // a refusal is not a use
		"8.8.8.8":          "",
		"fd00:10:96::10":   "fd00:10:96::/48 dev tun0",
		"fd77::1":          "", // as wide as a default route
		"2001:db8:1::2":    "2001:db8:1::2/128 dev up0, an address of this host",
		"2001:db8:1::9":    "2001:db8:1::/64 dev up0",
		"2001:db8:ffff::1": "",
	} {
		a := addrs(addr)
		found, err := c.rt.collisions(a)
		if err != nil {
			t.Error(err)
		}
		got := ""
		if by, taken := found[a[0]]; taken {
			got = by.String()
		}
		if got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}
	// A range is tested against all tables, and against refusals too.
	all, err := c.rt.occupied(c.index)
	if err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]string{
		"203.0.113.192/26": "203.0.113.128/25 dev tun0 table 34",
		"198.51.0.0/16":    "198.51.100.0/24",
		"10.2.0.0/16":      "10.0.0.0/8 dev tun0",
		"11.0.0.0/8":       "",
		"fd77::/16":        "",
	} {
		got := ""
		if by := firstOverlap(netip.MustParsePrefix(prefix), all); by != nil {
			got = by.String()
		}
		if got != want {
			t.Errorf("%s overlaps %q, want %q", prefix, got, want)
		}
	}
}

func TestNoPrivilege(t *testing.T) {
	needRoot(t)
	if got := worlds[1].ok(t, "mkdir -m 777 /mnt/state; unshare -n $AS $X probe capture /mnt/state/own"); got != "create device nasp0: operation not permitted" {
		t.Errorf("got %q", got)
	}
}
