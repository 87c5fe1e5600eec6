// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVirtualIsKept(t *testing.T) {
	ownHost(t, "")
	dir := t.TempDir()
	run := func() (ranges []netip.Prefix, v4, v6 netip.Addr) {
		t.Helper()
		s := openTestState(t, dir, "test")
		c := openTestCapture(t, CaptureConfig{State: s, VirtualAll: true})
		if err := c.Apply([]netip.Addr{vip4, vip6}); err != nil {
			t.Fatal(err)
		}
		proved(t, c, vip4, vip6)
		if got := way(t, vip4, 0); got != "up0" {
			t.Errorf("%v itself goes to %s", vip4, got)
		}
		ranges, v4, v6 = c.Status().Virtual, c.Map(vip4), c.Map(vip6)
		if err := errors.Join(c.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		return ranges, v4, v6
	}
	ranges, v4, v6 := run()
	if !ranges[0].Contains(v4) || !ranges[1].Contains(v6) || ranges[0].Bits() != 16 || ranges[1].Bits() != 64 {
		t.Errorf("%v, %v of %v", v4, v6, ranges)
	}
	again, w4, w6 := run()
	if again[0] != ranges[0] || again[1] != ranges[1] || w4 != v4 || w6 != v6 {
		t.Errorf("%v, %v of %v were %v, %v of %v", w4, w6, again, v4, v6, ranges)
	}
	// Somebody has the range now: another is chosen, and the places in it are kept.
	sh(t, "ip route add "+ranges[0].String()+" dev up0")
	other, x4, x6 := run()
	if other[0].Overlaps(ranges[0]) || other[1] != ranges[1] || x6 != v6 || x4.As4()[3] != v4.As4()[3] {
		t.Errorf("%v, %v of %v were %v, %v of %v", x4, x6, other, v4, v6, ranges)
	}
	// A file that cannot be trusted is as good as none.
	if err := os.WriteFile(filepath.Join(dir, "test.virtual"), []byte("nasp-tun virtual 1 sha256:0\n{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	run()
}

func TestVirtualPinned(t *testing.T) {
	ownHost(t, "ip route add 10.200.1.0/24 dev up0")
	pin := func(ranges ...string) (*Capture, error) {
		t.Helper()
		cfg := CaptureConfig{State: openTestState(t, t.TempDir(), "test"), VirtualAll: true}
		for _, r := range ranges {
			cfg.Virtual = append(cfg.Virtual, netip.MustParsePrefix(r))
		}
		return OpenCapture(cfg)
	}
	c, err := pin("10.201.7.7/20", "fd77:1::/64")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply([]netip.Addr{vip4, vip6}); err != nil {
		t.Error(err)
	}
	if got := c.Map(vip4).String() + " " + c.Map(vip6).String(); got != "10.201.0.16 fd77:1::10" {
		t.Errorf("got %s", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for _, row := range []struct{ ranges, want string }{
		{"10.200.0.0/16", "virtual range 10.200.0.0/16 is taken on this host by 10.200.1.0/24 dev up0"},
		{"10.0.0.0/8", "want a length of 12 to 24"},
		{"127.1.0.0/16", "loopback"},
		{"10.201.0.0/16 10.202.0.0/16", "one of that family already"},
	} {
		if _, err := pin(strings.Fields(row.ranges)...); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v", row.ranges, err)
		}
	}
}
