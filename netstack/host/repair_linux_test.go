// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// watched runs Watch until the test's end. The log and the changes that it reports come
// on channels.
func watched(t *testing.T, cfg CaptureConfig) (c *Capture, logged logWaiter, changes chan struct{}) {
	t.Helper()
	logged, changes = make(logWaiter, 1000), make(chan struct{}, 100)
	cfg.Logger = slog.New(slog.NewTextHandler(logged, nil))
	c = openTestCapture(t, cfg)
	if err := c.Apply([]netip.Addr{vip4, vip6}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Watch(ctx, func() { changes <- struct{}{} }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return c, logged, changes
}

func proved(t *testing.T, c *Capture, mesh ...netip.Addr) {
	t.Helper()
	for _, a := range mesh {
		if err := c.Prove(a); err != nil {
			t.Error(err)
		}
	}
}

func TestPutBack(t *testing.T) {
	ownHost(t, "")
	c, logged, _ := watched(t, CaptureConfig{})
	for _, take := range []string{
		"ip rule del pref 90", // systemd-networkd does this at a restart
		"for f in -4 -6; do for p in 89 90 91; do ip $f rule del pref $p; done; done",
		"ip route del 10.96.0.10/32 dev nasp0 table 7777",
		"ip route flush table 7777; ip -6 route flush table 7777",
		"ip link set nasp0 down", // of which the kernel tells nothing of IPv4 routes
		"ip addr flush dev nasp0",
	} {
		sh(t, take)
		logged.wait(t, "putting back what others took away")
		// The lock is held until all is done.
		if s := c.Status(); s.Repairs.Suspended {
			t.Errorf("%s: given up", take)
		}
		proved(t, c, vip4, vip6)
	}
	if s := c.Status(); s.Repairs.Rules != 7 || s.Repairs.Routes < 8 {
		t.Errorf("put back %+v", s.Repairs)
	}
}

func TestPutBackIsCapped(t *testing.T) {
	ownHost(t, "")
	c, logged, _ := watched(t, CaptureConfig{})
	for range repairMost {
		sh(t, "ip rule del pref 90")
		logged.wait(t, "putting back what others took away")
		c.Status()
	}
	sh(t, "ip rule del pref 90")
	logged.wait(t, "taken away too often")
	if s := c.Status(); !s.Repairs.Suspended || s.Repairs.Rules != repairMost {
		t.Errorf("put back %+v", s.Repairs)
	}
}

func TestVPNComesUp(t *testing.T) {
	ownHost(t, "")
	c, logged, changes := watched(t, CaptureConfig{Ranges: []netip.Prefix{netip.MustParsePrefix("10.98.0.0/16")}})
	if got := way(t, addrs("10.98.0.1")[0], 0); got != "nasp0" {
		t.Errorf("the range goes to %s", got)
	}
	virtual := c.Status().Virtual[0]
	// Our own changes are not those of the host.
	if err := c.Apply(append(addrs("10.96.0.11"), vip4, vip6)); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip link add tun0 type veth peer name tun0p; ip link set tun0p up; ip addr add 100.100.1.1/32 dev tun0; ip link set tun0 up; ip route add 10.0.0.0/8 dev tun0; ip route add "+virtual.String()+" dev tun0")
	<-changes
	logged.wait(t, "virtual range is taken on this host, moving")
	s := c.Status()
	if s.Virtual[0] == virtual || len(s.Moved) != 2 || len(s.Refused) != 1 || s.Refused[0].By.String() != "10.0.0.0/8 dev tun0" {
		t.Errorf("status %+v", s)
	}
	if got := way(t, vip4, 0); got != "tun0" {
		t.Errorf("%v goes to %s", vip4, got)
	}
	proved(t, c, vip4, vip6)
	moved := c.Map(vip4)
	if !s.Virtual[0].Contains(moved) || c.Real(moved) != vip4 {
		t.Errorf("%v is reached by %v, which stands for %v", vip4, moved, c.Real(moved))
	}
	if got := sh(t, "ip -o -4 addr show nasp0"); strings.Count(got, "inet") != 1 || !strings.Contains(got, c.virtual[unix.AF_INET].device().String()) {
		t.Errorf("the device has %s", got)
	}
	// It goes again: what has moved stays, since it may be cached.
	for len(changes) > 0 {
		<-changes
	}
	sh(t, "ip link del tun0")
	<-changes
	if got := c.Map(vip4); got != moved {
		t.Errorf("%v is reached by %v now, was by %v", vip4, got, moved)
	}
	if s := c.Status(); len(s.Refused) != 0 {
		t.Errorf("refused %+v", s.Refused)
	}
	proved(t, c, vip4, vip6)
}

func TestStrictReversePath(t *testing.T) {
	ownHost(t, "echo 1 >/proc/sys/net/ipv4/conf/up0/rp_filter")
	for _, ranges := range [][]netip.Prefix{nil, {netip.MustParsePrefix("10.98.0.0/16")}} {
		c := openTestCapture(t, CaptureConfig{Ranges: ranges})
		warned := slices.ContainsFunc(c.Status().Warnings, func(w string) bool { return strings.Contains(w, "net.ipv4.conf.up0.rp_filter=2") })
		if warned != (ranges != nil) {
			t.Errorf("with ranges %v: %q", ranges, c.Status().Warnings)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestProveSaysWhatIsWrong(t *testing.T) {
	for _, row := range []struct{ name, setup, layer, got string }{
		{"a rule before ours", "ip rule add pref 5 lookup 5; ip route add default dev up0 table 5", "route", "goes to up0"},
		{"no mark", "ip rule del pref 89", "mark", "goes into nasp0"},
		{"no route", "ip route del 10.96.0.10/32 dev nasp0 table 7777", "route", "no route"},
	} {
		t.Run(row.name, func(t *testing.T) {
			ownHost(t, "")
			c := openTestCapture(t, CaptureConfig{})
			if err := c.Apply([]netip.Addr{vip4}); err != nil {
				t.Fatal(err)
			}
			proved(t, c, vip4)
			sh(t, row.setup)
			err, ok := c.Prove(vip4).(*ProofError)
			if !ok || err.Layer != row.layer || err.Got != row.got || err.What != vip4.String() || err.Hint == "" {
				t.Errorf("got %+v", err)
			}
		})
	}
}
