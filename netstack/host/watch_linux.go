// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchSettle is how long the routes must be quiet before they are looked at: one
// change of network comes as many events.
const watchSettle = 250 * time.Millisecond

// internet6 stands for the IPv6 Internet: the first address of what is given out.
// Nothing is sent to it.
var internet6 = netip.AddrPortFrom(netip.MustParseAddr("2000::"), 53)

// HasIPv6 reports whether this host has a route to the IPv6 Internet for our
// sockets, policy routing and mark included. Connecting a datagram socket asks the
// kernel that and sends nothing.
func (d *Dialer) HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if d.Mark != 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(d.Mark)) != nil {
		return false
	}
	return unix.Connect(fd, sockaddr(internet6)) == nil
}

// WatchIPv6 calls changed with the first state and with each that differs from the
// one before, until ctx ends.
func (d *Dialer) WatchIPv6(ctx context.Context, changed func(bool)) error {
	events, err := newRouteEvents()
	if err != nil {
		return err
	}
	defer events.Close()
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })()
	// Asked after the subscription, so that no change is missed between.
	last := d.HasIPv6()
	changed(last)
	for {
		if err := nextChange(ctx, events); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if now := d.HasIPv6(); now != last {
			last = now
			changed(now)
		}
	}
}

// newRouteEvents subscribes to whatever may change where packets go. What the events
// say is not read: the kernel does not send all of them, so each only means "look
// again".
func newRouteEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket rtnetlink", err)
	}
	groups := uint32(0)
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind rtnetlink", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// nextChange waits for an event and then for quiet.
func nextChange(ctx context.Context, events *os.File) error {
	b := make([]byte, 64<<10)
	if err := readEvent(events, b); err != nil {
		return err
	}
	quiet := time.NewTimer(watchSettle)
	defer quiet.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-quiet.C:
	}
	// Take what came meanwhile; the look that follows covers it.
	if err := events.SetReadDeadline(time.Now()); err != nil {
		return err
	}
	for {
		err := readEvent(events, b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := events.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err() // whose deadline the line above may have undone
}

// readEvent takes one event. An overrun means events too.
func readEvent(events *os.File, b []byte) error {
	_, err := events.Read(b)
	if errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}
