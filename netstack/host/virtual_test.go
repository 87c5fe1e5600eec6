// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"net/netip"
	"testing"
)

func TestVirtualAssign(t *testing.T) {
	v := newVirtualRange(netip.MustParsePrefix("251.1.2.0/24"))
	live := map[netip.Addr]bool{}
	isLive := func(a netip.Addr) bool { return live[a] }
	real := netip.MustParseAddr("10.0.0.1")
	first := real
	given := map[netip.Addr]netip.Addr{}
	for range 256 - virtualReserved {
		live[real] = true
		a, err := v.assign(real, isLive)
		if err != nil {
			t.Fatal(err)
		}
		if other, twice := given[a]; twice || !v.prefix.Contains(a) || a == v.device() || a == v.prefix.Addr() {
			t.Fatalf("%v for %v, and for %v", a, real, other)
		}
		given[a] = real
		real = real.Next()
	}
	if _, err := v.assign(real, isLive); !errors.Is(err, ErrVirtualFull) {
		t.Errorf("a full range: %v", err)
	}
	was, err := v.assign(first, isLive)
	if err != nil || given[was] != first {
		t.Errorf("%v got another address, %v, %v", first, was, err)
	}
	// Of a service that is gone the address is given out again, but only then.
	delete(live, first)
	if again, err := v.assign(real, isLive); err != nil || again != was {
		t.Errorf("got %v, %v, want %v", again, err, was)
	}
}

func TestVirtualCandidates(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for _, p := range virtualCandidates(7) {
		if err := CheckVirtual(p); err != nil || seen[p] {
			t.Errorf("%v: %v", p, err)
		}
		seen[p] = true
		for _, other := range []string{"240.240.0.0/16", "246.246.0.0/16", "198.18.0.0/15", "100.64.0.0/10", "172.16.0.0/12", "255.255.255.255/32"} {
			if p.Overlaps(netip.MustParsePrefix(other)) {
				t.Errorf("%v is another tool's", p)
			}
		}
	}
	if len(seen) != 4*256 {
		t.Errorf("%d candidates", len(seen))
	}
}

func TestCheckCapture(t *testing.T) {
	for _, row := range []struct {
		prefix string
		ok     bool
	}{
		{"10.96.0.0/12", true},
		{"10.0.0.0/8", true},
		{"fd00:10:96::/112", true},
		{"203.0.113.7/32", true},
		{"240.240.0.0/16", true},
		{"0.0.0.0/0", false},
		{"0.0.0.0/1", false},
		{"128.0.0.0/1", false},
		{"::/0", false},
		{"2000::/3", false},
		{"127.0.0.0/8", false},
		{"169.254.0.0/16", false},
		{"224.0.0.0/8", false},
		{"fe80::/64", false},
		{"::1/128", false},
		{"::ffff:10.0.0.0/104", false},
	} {
		if err := CheckCapture(netip.MustParsePrefix(row.prefix)); (err == nil) != row.ok {
			t.Errorf("%s: %v", row.prefix, err)
		}
	}
	if CheckCapture(netip.Prefix{}) == nil {
		t.Error("no prefix was accepted")
	}
}
