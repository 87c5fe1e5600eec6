// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// SetIPv6 says whether the host reaches IPv6 now. While it does not, the program
// gets "network unreachable" at once for addresses outside the mesh, so that it
// turns to IPv4 without waiting. See [Dialer.WatchIPv6].
func (e *Exec) SetIPv6(on bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return net.ErrClosed
	case !e.hasIPv6 || e.ipv6 == on:
		return nil
	}
	route, fine := default6(e.index).add(), unix.EEXIST
	if !on {
		route, fine = default6(e.index).del(), unix.ESRCH
	}
	if err := e.rt.do(fine, route); err != nil {
		return fmt.Errorf("set IPv6 default route inside: %w", err)
	}
	e.ipv6 = on
	return nil
}

// SetMesh6 replaces the set of IPv6 addresses that lead into the TUN even while
// the host has no IPv6: those of the mesh.
func (e *Exec) SetMesh6(addrs []netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return net.ErrClosed
	case !e.hasIPv6:
		return nil
	}
	wanted := make(map[netip.Addr]struct{}, len(addrs))
	var add, del []*nl.NetlinkRequest
	for _, a := range addrs {
		if !a.Is6() || a.Is4In6() {
			continue
		}
		a = a.WithZone("")
		if _, twice := wanted[a]; twice {
			continue
		}
		wanted[a] = struct{}{}
		if _, ok := e.mesh6[a]; !ok {
			add = append(add, e.mesh6Route(a).add())
		}
	}
	for a := range e.mesh6 {
		if _, ok := wanted[a]; !ok {
			del = append(del, e.mesh6Route(a).del())
		}
	}
	// The new stand before the old go. A route that failed is tried again when the
	// set changes next, since the set below says what was wanted and not what is.
	err := errors.Join(e.rt.do(unix.EEXIST, add...), e.rt.do(unix.ESRCH, del...))
	e.mesh6 = wanted
	if err != nil {
		return fmt.Errorf("set IPv6 routes inside: %w", err)
	}
	return nil
}

func (e *Exec) mesh6Route(a netip.Addr) routeSpec {
	return routeSpec{dst: netip.PrefixFrom(a, a.BitLen()), index: e.index, metric: metricDefault6}
}
