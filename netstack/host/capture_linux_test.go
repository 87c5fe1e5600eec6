// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	vip4 = netip.MustParseAddr("10.96.0.10")
	vip6 = netip.MustParseAddr("fd00:10:96::10")
)

// hosts are what people's machines look like when a mesh is to be captured on them.
var hosts = []struct {
	name, setup string
	owner       string // of vip4, if the host has one
}{
	{"plain", ``, ""},
	{"OpenVPN's two halves", `vpn tun0; ip route add 0.0.0.0/1 dev tun0; ip route add 128.0.0.0/1 dev tun0
		for p in ::/3 2000::/4 3000::/4 fc00::/7; do ip -6 route add $p dev tun0; done`, ""},
	{"corporate VPN with 10/8", `vpn tun0; ip route add 10.0.0.0/8 dev tun0`, "10.0.0.0/8 dev tun0"},
	{"docker bridge on the service range", `ip link add br-hh type bridge; ip link set br-hh addrgenmode none up
		ip addr add 10.96.0.1/16 dev br-hh`, "10.96.0.0/16 dev br-hh"},
	{"source rule", `vpn tun0; for f in -4 -6; do ip $f route add default dev tun0 table 100; done
		ip rule add pref 1000 from 192.0.2.2 lookup 100; ip -6 rule add pref 1000 from 2001:db8:1::2 lookup 100`, ""},
	{"wg-quick", `vpn wg0; for f in -4 -6; do ip $f route add default dev wg0 table 51820
		ip $f rule add pref 32765 not fwmark 51820 lookup 51820; ip $f rule add pref 32764 lookup main suppress_prefixlength 0; done`, ""},
	{"Tailscale exit node", `vpn tailscale0; for f in -4 -6; do ip $f rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
		ip $f rule add pref 5230 fwmark 0x80000/0xff0000 lookup default; ip $f rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
		ip $f rule add pref 5270 lookup 52; ip $f route add default dev tailscale0 table 52; done`, ""},
	{"Tailscale subnet route", `vpn tailscale0; ip rule add pref 5270 lookup 52; ip route add 10.96.0.0/12 dev tailscale0 table 52`, "10.96.0.0/12 dev tailscale0 table 52"},
	{"netbird exit node", `vpn wt0; for f in -4 -6; do ip $f rule add pref 105 lookup main suppress_prefixlength 0
		ip $f rule add pref 110 not fwmark 0x1bd00 lookup 7120; ip $f route add default dev wt0 table 7120; done`, ""},
}

// elsewhere are addresses that are none of our business.
var elsewhere = addrs("198.51.100.7", "10.96.0.11", "10.1.2.3", "192.0.2.77", "100.64.0.9", "2001:db8:2::1", "fd00:10:96::11", "127.0.0.1")

func TestCaptureOnHosts(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			ownHost(t, h.setup)
			before := hostState(t)
			ways := map[netip.Addr]string{}
			for _, a := range append(elsewhere, vip4, vip6) {
				ways[a] = way(t, a, 0)
			}
			c := openTestCapture(t, CaptureConfig{})
			if err := c.Apply([]netip.Addr{vip4, vip6}); err != nil {
				t.Fatal(err)
			}
			if moved := c.Map(vip4) != vip4; moved != (h.owner != "") {
				t.Errorf("%v is reached by %v", vip4, c.Map(vip4))
			}
			if h.owner != "" {
				if m := c.Status().Moved; len(m) == 0 || m[0].By.String() != h.owner {
					t.Errorf("moved %+v, want because of %s", m, h.owner)
				}
				elsewhere := way(t, vip4, 0)
				if elsewhere != ways[vip4] {
					t.Errorf("%v of the host goes to %s, went to %s", vip4, elsewhere, ways[vip4])
				}
			}
			fd := c.Device().FD
			for _, real := range []netip.Addr{vip4, vip6} {
				addr := c.Map(real)
				if back := c.Real(addr); back != real {
					t.Errorf("%v stands for %v, want %v", addr, back, real)
				}
				if err := c.Prove(real); err != nil {
					t.Error(err)
				}
				if addr == real {
					if got := way(t, addr, MarkOwn); got != ways[addr] {
						t.Errorf("marked to %v: %s, before us %s", addr, got, ways[addr])
					}
				}
				// The packet of ours must not be the one that comes out.
				send(t, addr, MarkOwn)
				send(t, addr, 0)
				if got := seenByTUN(t, fd); got != addr {
					t.Errorf("the TUN got a packet to %v, want %v", got, addr)
				}
			}
			for _, a := range elsewhere {
				if got := way(t, a, 0); got != ways[a] {
					t.Errorf("%v goes to %s, went to %s", a, got, ways[a])
				}
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			closeFD(t, fd)
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("the host is not as before (-before +after):\n%s", diff)
			}
		})
	}
}

func TestApplyDifference(t *testing.T) {
	ownHost(t, "")
	c := openTestCapture(t, CaptureConfig{Ranges: []netip.Prefix{netip.MustParsePrefix("10.97.3.4/16")}, Except: addrs("10.97.0.1", "10.98.0.1")})
	table := func() string {
		return strings.TrimSpace(sh(t, `ip route show table 7777 | grep -v '^25[1-3]\|^unreachable 25[1-3]' | sed 's/ src .*//; s/ *$//' | sort`))
	}
	for _, row := range []struct{ mesh, want string }{
		{"10.96.0.10 10.96.0.11", "10.96.0.10 dev nasp0 proto 155 scope link\n10.96.0.11 dev nasp0 proto 155 scope link\n10.97.0.0/16 dev nasp0 proto 155 scope link\n" +
			"throw 10.97.0.1 proto 155 metric 2048\nunreachable 10.96.0.10 proto 155 metric 4294967294\nunreachable 10.96.0.11 proto 155 metric 4294967294"},
		// What is no unicast address of others, or twice, is nothing.
		{"10.96.0.11 10.96.0.11 ::ffff:10.96.0.11 127.0.0.1 224.0.0.1 0.0.0.0 fe80::1%lo", "10.96.0.11 dev nasp0 proto 155 scope link\n" +
			"10.97.0.0/16 dev nasp0 proto 155 scope link\nthrow 10.97.0.1 proto 155 metric 2048\nunreachable 10.96.0.11 proto 155 metric 4294967294"},
		// An address of the mesh wins over an exception.
		{"10.97.0.1", "10.97.0.0/16 dev nasp0 proto 155 scope link\n10.97.0.1 dev nasp0 proto 155 scope link\nunreachable 10.97.0.1 proto 155 metric 4294967294"},
		{"", "10.97.0.0/16 dev nasp0 proto 155 scope link\nthrow 10.97.0.1 proto 155 metric 2048"},
	} {
		if err := c.Apply(addrs(strings.Fields(row.mesh)...)); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(row.want, table()); diff != "" {
			t.Errorf("%q:\n%s", row.mesh, diff)
		}
	}
}

func TestApplyTellsWhatStands(t *testing.T) {
	ownHost(t, "")
	c := openTestCapture(t, CaptureConfig{})
	if err := c.Apply([]netip.Addr{vip4}); err != nil {
		t.Fatal(err)
	}
	want := c.Status().Routes
	sh(t, "ip link set nasp0 down") // so that routes into it fail
	if err := c.Apply(addrs("10.96.0.10", "10.96.0.11")); err == nil || !strings.Contains(err.Error(), "add route 10.96.0.11/32: network is down") {
		t.Errorf("got %v", err)
	}
	if got := c.Status().Routes; got != want+1 { // the unreachable one alone
		t.Errorf("%d routes are said to stand, want %d", got, want+1)
	}
	sh(t, "ip link set nasp0 up")
	if _, err := c.repair(true); err != nil {
		t.Error(err)
	}
	for _, a := range addrs("10.96.0.10", "10.96.0.11") {
		if err := c.Prove(a); err != nil {
			t.Error(err)
		}
	}
}

func TestManyAddresses(t *testing.T) {
	ownHost(t, "")
	c := openTestCapture(t, CaptureConfig{})
	const n = 10_000
	var mesh []netip.Addr
	a4, a6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:10:96::1")
	for range n / 2 {
		mesh = append(mesh, a4, a6)
		a4, a6 = a4.Next(), a6.Next()
	}
	if err := c.Apply(mesh); err != nil {
		t.Fatal(err)
	}
	if got := c.Status().Routes; got != 2*n+4 {
		t.Errorf("%d routes stand, want %d", got, 2*n+4)
	}
	if err := c.Prove(mesh[n-1]); err != nil {
		t.Error(err)
	}
	if err := c.Apply(mesh[:2]); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, "{ ip route show table 7777; ip -6 route show table 7777; } | wc -l"); strings.TrimSpace(got) != "8" {
		t.Errorf("%s routes stand after all but two addresses went, want 8", got)
	}
}

func TestForwardedIsLeftAlone(t *testing.T) {
	for _, row := range []struct {
		name      string
		forwarded bool
		want      string
	}{{"", false, "up0"}, {"asked for", true, "nasp0"}} {
		t.Run(row.name, func(t *testing.T) {
			// As of a container behind docker0.
			ownHost(t, `ip link add docker0 type bridge; ip link set docker0 addrgenmode none up; ip addr add 172.17.0.1/16 dev docker0
				echo 1 >/proc/sys/net/ipv4/ip_forward`)
			c := openTestCapture(t, CaptureConfig{Forwarded: row.forwarded})
			if err := c.Apply([]netip.Addr{vip4}); err != nil {
				t.Fatal(err)
			}
			if got := sh(t, "ip route get 10.96.0.10 from 172.17.0.2 iif docker0"); !strings.Contains(got, "dev "+row.want) {
				t.Errorf("a container's packet: %s", got)
			}
		})
	}
}

func TestTaken(t *testing.T) {
	for _, row := range []struct{ name, setup, want string }{
		{"rule", "ip rule add pref 90 lookup 99", "routing rule 90 is taken (it leads to table 99)"},
		{"IPv6 rule", "ip -6 rule add pref 89 lookup 98", "routing rule 89 is taken (it leads to table 98)"},
		{"table", "ip route add 10.1.0.0/16 dev up0 table 7777", "routing table 7777 is taken: it has a route to 10.1.0.0/16 of protocol 3"},
		{"device", "ip link add nasp0 type bridge", "create device nasp0: there is one of that name"},
		{"somebody's lasting TUN", "ip tuntap add nasp0 mode tun", "create device nasp0: there is one of that name"},
	} {
		t.Run(row.name, func(t *testing.T) {
			ownHost(t, row.setup)
			before := hostState(t)
			s := openTestState(t, t.TempDir(), "test")
			_, err := OpenCapture(CaptureConfig{State: s})
			if err == nil || err.Error() != row.want {
				t.Errorf("got %v, want %s", err, row.want)
			}
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Error(diff)
			}
			if !s.body.empty() {
				t.Errorf("the journal says %+v", s.body)
			}
		})
	}
}

func TestTwoOnOneHost(t *testing.T) {
	ownHost(t, "")
	dir := t.TempDir()
	c := openTestCapture(t, CaptureConfig{State: openTestState(t, dir, "first")})
	if err := c.Apply([]netip.Addr{vip4}); err != nil {
		t.Fatal(err)
	}
	var busy *BusyError
	if _, err := OpenCapture(CaptureConfig{State: openTestState(t, dir, "second"), Device: "nasp1"}); !errors.As(err, &busy) || busy.Device != "nasp0" {
		t.Errorf("got %v", err)
	}
	if _, err := CleanUp(CleanUpConfig{Dir: dir, Name: "third"}); !errors.As(err, &busy) {
		t.Errorf("clean-up of a session that never was: %v", err)
	}
	if err := c.Prove(vip4); err != nil {
		t.Errorf("the first does not live on: %v", err)
	}
}

func TestWithoutIPv6(t *testing.T) {
	ownHost(t, "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
	c := openTestCapture(t, CaptureConfig{})
	if err := c.Apply([]netip.Addr{vip4, vip6}); err != nil {
		t.Fatal(err)
	}
	if s := c.Status(); s.IPv6 || len(s.Virtual) != 1 {
		t.Errorf("status %+v", s)
	}
	if err := c.Prove(vip4); err != nil {
		t.Error(err)
	}
	if got := strings.TrimSpace(sh(t, "ip -6 rule | grep -c 7777 || :")); got != "0" {
		t.Error("there is an IPv6 rule")
	}
}
