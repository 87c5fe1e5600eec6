// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ownHost moves the rest of the test, and the commands that it runs, into a network
// namespace of its own: a host with an uplink, up0, and nothing else. Nobody is at its
// other end to be asked for a neighbour's address. The thread ends with the test.
func ownHost(t *testing.T, setup string) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	sh(t, `
		ip link set lo up
		pair() { ip link add $1 type veth peer name $1p; for d in $1 $1p; do ip link set $d addrgenmode none arp off up; done; }
		pair up0
		ip addr add 192.0.2.2/24 dev up0
		ip -6 addr add 2001:db8:1::2/64 dev up0 nodad
		ip route add default via 192.0.2.1
		ip -6 route add default via 2001:db8:1::1
		vpn() { pair $1; ip addr add 100.100.1.1/32 dev $1; }
		`+setup+`
		# The kernel does some of this in its own time.
		for d in $(ip -o link show type veth | sed 's/^[0-9]*: //; s/@.*//'); do
			test "$(cat /proc/sys/net/ipv6/conf/$d/disable_ipv6)" = 0 || continue
			until ip -6 route show table local | grep -q "^multicast ff00::/8 dev $d "; do :; done
		done
		for a in $(ip -6 -o addr | awk '{print $4}'); do
			until ip -6 route show table local | grep -q "^local ${a%/*} "; do :; done
		done
		while ip -o link show type veth | grep -q NO-CARRIER; do :; done`)
}

// sh runs a script that must succeed and returns what it printed.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

// hostState is all that a host's networking is, as sorted lines without what changes
// by itself.
func hostState(t *testing.T) []string {
	t.Helper()
	out := sh(t, `
		ip -d -o link | sed -E 's/^[0-9]+: /link /; s/ state [A-Z]+//; s/_timer +[0-9.]+//g'
		ip -o addr | sed -E 's/^[0-9]+: /addr /; s/valid_lft .*//'
		for f in -4 -6; do
			ip $f route show table all | sed -E 's/ expires [0-9a-z]+//; s/^/route /'
			ip $f rule | sed 's/^/rule /'
			ip $f neigh | awk '{print "neigh", $1, $3}'
			ip $f nexthop
		done
		nft list ruleset 2>/dev/null || :
		cd /proc/sys/net
		grep -r . ipv4/conf ipv6/conf ipv4/ip_forward ipv4/icmp_* ipv4/tcp_* 2>/dev/null | grep -v 'stable_secret\|tcp_mem\|tcp_fastopen_key' || :`)
	lines := strings.Split(out, "\n")
	slices.Sort(lines)
	return lines
}

// way says by which device a packet goes: of anybody's socket, or with a mark.
func way(t *testing.T, addr netip.Addr, mark uint32) string {
	t.Helper()
	rt, err := newRTNL()
	if err != nil {
		t.Fatal(err)
	}
	defer rt.close()
	route, err := rt.lookup(addr, mark)
	if err != nil {
		return err.Error()
	}
	return rt.deviceName(route.index)
}

// openTestState opens a state directory of the test's own, or a given one.
func openTestState(t *testing.T, dir, name string) *State {
	t.Helper()
	s, err := OpenState(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// openTestCapture opens a capture that the test closes at its end, if not before.
func openTestCapture(t *testing.T, cfg CaptureConfig) *Capture {
	t.Helper()
	if cfg.State == nil {
		cfg.State = openTestState(t, t.TempDir(), "test")
	}
	c, err := OpenCapture(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// seenByTUN returns the destination of the next packet that the TUN hands out.
func seenByTUN(t *testing.T, fd int) netip.Addr {
	t.Helper()
	b := make([]byte, 65536)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("nothing came out of the TUN: %v", err)
		}
		if n, err = unix.Read(fd, b); err != nil {
			t.Fatal(err)
		}
		const vnet = 10
		p := b[vnet:n]
		switch {
		case len(p) >= 20 && p[0]>>4 == 4:
			return netip.AddrFrom4([4]byte(p[16:20]))
		case len(p) >= 40 && p[0]>>4 == 6:
			return netip.AddrFrom16([16]byte(p[24:40]))
		}
		t.Fatalf("the TUN handed out % x", p)
	}
}

// send sends a datagram to port 9 of addr; an error of the route is not one here.
func send(t *testing.T, addr netip.Addr, mark uint32) {
	t.Helper()
	d := Dialer{Mark: mark}
	c, err := d.DialContext(t.Context(), "udp", netip.AddrPortFrom(addr, 9).String())
	if err != nil {
		if mark == 0 {
			t.Fatal(err)
		}
		return
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil && mark == 0 {
		t.Fatal(err)
	}
}

func closeFD(t *testing.T, fd int) {
	t.Helper()
	if err := os.NewSyscallError("close", unix.Close(fd)); err != nil {
		t.Error(err)
	}
}
