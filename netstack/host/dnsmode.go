// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
	"slices"
)

// A DNSMode is how names of the mesh get into the host's resolver.
type DNSMode string

// The ways there are.
const (
	DNSAuto       DNSMode = "auto"       // the one that this host has
	DNSResolved   DNSMode = "resolved"   // systemd-resolved, for our domains alone
	DNSResolvConf DNSMode = "resolvconf" // our server first in resolv.conf
	DNSNone       DNSMode = "none"       // no names, only addresses
)

// ParseDNSMode reads the word for a mode; the empty one is auto.
func ParseDNSMode(word string) (DNSMode, error) {
	switch m := DNSMode(word); m {
	case "":
		return DNSAuto, nil
	case DNSAuto, DNSResolved, DNSResolvConf, DNSNone:
		return m, nil
	}
	return "", fmt.Errorf("dns mode %q: want auto, resolved, resolvconf or none", word)
}

// resolvedStubs are where systemd-resolved answers those who read resolv.conf.
var resolvedStubs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}

// A dnsWorld is what tells how a host resolves names.
type dnsWorld struct {
	servers     []netip.AddrPort // of resolv.conf
	resolved    bool             // systemd-resolved runs
	nssResolved bool             // glibc asks it without looking at resolv.conf
}

// detect chooses a mode, and says who will not see names of the mesh under it.
func (w dnsWorld) detect() (mode DNSMode, warning string) {
	stub := slices.ContainsFunc(w.servers, func(s netip.AddrPort) bool { return slices.Contains(resolvedStubs, s.Addr()) })
	switch {
	case stub:
		// Should it not run now, asking it over D-Bus starts it, or says why not.
		return DNSResolved, ""
	case w.resolved && w.nssResolved:
		return DNSResolved, "resolv.conf by-passes systemd-resolved: programs without glibc (Go, musl) will not find names of the mesh"
	}
	return DNSResolvConf, ""
}
