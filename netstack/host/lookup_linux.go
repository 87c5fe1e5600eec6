// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routeQuestion asks where a packet to dst would go that a socket of ours, with that
// mark, or anybody's, with none, sends. With match the answer is the route that
// decides, not the one made of it for this address.
func routeQuestion(dst netip.Addr, mark uint32, match bool) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len = uint8(family(dst)), uint8(dst.BitLen())
	msg.Table, msg.Protocol, msg.Scope, msg.Type = 0, 0, 0, 0
	if match {
		msg.Flags = unix.RTM_F_FIB_MATCH
		if dst.Is4() {
			msg.Flags |= unix.RTM_F_LOOKUP_TABLE // which IPv6 refuses, and does unasked
		}
	}
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(unix.RTA_DST, dst.AsSlice()))
	if mark != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_MARK, nl.Uint32Attr(mark)))
	}
	return q
}

// lookup asks the kernel one [routeQuestion].
func (r *rtnl) lookup(dst netip.Addr, mark uint32) (kernelRoute, error) {
	route, err := kernelRoute{}, errAnswer
	sock := r.each([]*nl.NetlinkRequest{routeQuestion(dst, mark, false)}, func(_ int, m nlMessage, e error) {
		if err = e; e == nil {
			route, err = parseRoute(m)
		}
	})
	return route, errors.Join(sock, err)
}

// noWay reports whether an answer says that the host itself has no use for the
// address: no route, or one that refuses. The kernel does not say how wide that one
// is, and a refusal of all that no other route takes must not count as an owner.
func noWay(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) ||
		errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)
}

// A Collision says who on this host owns an address or a range already.
type Collision struct {
	Prefix netip.Prefix // the route, or the address of the host itself
	Device string       // empty: none, or several
	Table  uint32       // 254 is main, 255 the host's own addresses
}

// String names the owner as `ip route` would.
func (c Collision) String() string {
	s := c.Prefix.String()
	if c.Device != "" {
		s += " dev " + c.Device
	}
	switch c.Table {
	case 0, unix.RT_TABLE_MAIN:
	case unix.RT_TABLE_LOCAL:
		s += ", an address of this host"
	default:
		s += fmt.Sprintf(" table %d", c.Table)
	}
	return s
}

// wide reports whether a route is that of "everything else", or a part of it as VPNs
// have (of IPv6, OpenVPN takes ::/3, 2000::/4, 3000::/4 and fc00::/7): it owns no
// address in particular.
func wide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() <= 1
	}
	return p.Bits() <= 7
}

// collisions asks for each address where the host would send it without us: through
// all its policy rules, as our rule 89 lets a marked packet. Those that belong to
// somebody are in the answer. Our rules must stand.
func (r *rtnl) collisions(addrs []netip.Addr) (map[netip.Addr]Collision, error) {
	reqs := make([]*nl.NetlinkRequest, len(addrs))
	for i, a := range addrs {
		reqs[i] = routeQuestion(a, MarkOwn, true)
	}
	taken := make(map[netip.Addr]kernelRoute)
	var odd error
	err := r.each(reqs, func(i int, m nlMessage, err error) {
		if err != nil {
			if !noWay(err) {
				odd = fmt.Errorf("look up route to %v: %w", addrs[i], err)
			}
			return
		}
		route, err := parseRoute(m)
		switch {
		case err != nil:
			odd = err
		case wide(route.dst) && route.kind == unix.RTN_UNICAST || route.protocol == protoNasp:
		default:
			taken[addrs[i]] = route
		}
	})
	found := make(map[netip.Addr]Collision, len(taken))
	names := map[int]string{}
	for a, route := range taken {
		found[a] = r.owner(route, names)
	}
	return found, errors.Join(err, odd)
}

// owner turns a route into words. Names of devices are asked for once each, after the
// answers that they are for have been read.
func (r *rtnl) owner(k kernelRoute, names map[int]string) Collision {
	c := Collision{Prefix: k.dst, Table: k.table}
	if k.index != 0 {
		name, known := names[k.index]
		if !known {
			name = r.deviceName(k.index)
			names[k.index] = name
		}
		c.Device = name
	}
	return c
}

// deviceName returns the name of a device, for messages.
func (r *rtnl) deviceName(index int) string {
	q := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	q.AddData(msg)
	name := fmt.Sprintf("number %d", index)
	_ = r.each([]*nl.NetlinkRequest{q}, func(_ int, m nlMessage, err error) {
		if err != nil || len(m.Data) < unix.SizeofIfInfomsg {
			return
		}
		attrs, _ := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME {
				name = unix.ByteSliceToString(a.Value)
			}
		}
	})
	return name
}

// occupied lists who on this host has a route or an address, in whatever table: rules
// that lead there may come at any moment. Our own routes and those of our device do
// not count, and the wide ones own nothing.
func (r *rtnl) occupied(device int) ([]Collision, error) {
	var all []Collision
	names := map[int]string{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		// The local table holds the addresses of the host too.
		list, err := r.routes(family, 0)
		if err != nil {
			return nil, err
		}
		for _, route := range list {
			if route.protocol != protoNasp && !wide(route.dst) && (device == 0 || route.index != device) {
				all = append(all, r.owner(route, names))
			}
		}
	}
	return all, nil
}

func firstOverlap(p netip.Prefix, all []Collision) *Collision {
	for i := range all {
		if all[i].Prefix.Overlaps(p) {
			return &all[i]
		}
	}
	return nil
}
