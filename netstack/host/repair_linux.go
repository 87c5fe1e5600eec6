// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// changeMost is how long a host that never rests may put off the look at it.
	changeMost = 2 * time.Second

	// repairMost is how often within repairWindow what others took away is put back.
	// Whoever takes it away each time wins, and the operator is told.
	repairMost   = 10
	repairWindow = time.Minute

	// eventBuffer holds the events of some thousand routes; after an overrun all is
	// looked at, as after any event.
	eventBuffer = 1 << 20
)

// Repairs counts what others took away and we put back.
type Repairs struct {
	Rules, Routes int
	Suspended     bool // too often of late: what is missing stays missing for a while
}

// An eventSocket hears of all that may change where packets go. It belongs to the
// network namespace in which it was made.
type eventSocket struct {
	*os.File
	own uint32 // changes by this port are our own
}

func newEventSocket(own uint32) (*eventSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket rtnetlink", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
	groups := uint32(0)
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
	} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind rtnetlink", err)
	}
	return &eventSocket{os.NewFile(uintptr(fd), "rtnetlink"), own}, nil
}

// wait returns when others have changed something and it has been quiet since, or at
// the given moment if that is not zero. What the events say is not read: the kernel
// tells nothing of the IPv4 routes that go with a device.
func (e *eventSocket) wait(ctx context.Context, at time.Time) error {
	b := make([]byte, 64<<10)
	deadline, last := at, time.Time{}
	for {
		if err := e.SetReadDeadline(deadline); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err // whose deadline the line above may have undone
		}
		n, err := e.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return err
		case err == nil && !e.foreign(b[:n]):
			continue
		}
		now := time.Now()
		if last.IsZero() {
			last = now.Add(changeMost)
		}
		if deadline = now.Add(watchSettle); deadline.After(last) {
			deadline = last
		}
	}
}

// foreign reports whether one of the events was not caused by us.
func (e *eventSocket) foreign(b []byte) bool {
	msgs, err := parseNetlink(b)
	if err != nil {
		return true
	}
	for _, m := range msgs {
		if m.Header.Pid != e.own {
			return true
		}
	}
	return false
}

// Watch looks after the capture until ctx ends. When others change the host, it puts
// back what they took of ours, tests again what may collide now, and then, if the
// host's own routes, addresses or rules differ, calls changed.
func (c *Capture) Watch(ctx context.Context, changed func()) error {
	defer context.AfterFunc(ctx, func() { _ = c.events.SetReadDeadline(time.Unix(1, 0)) })()
	last, err := c.fingerprint()
	if err != nil {
		return err
	}
	var recent []time.Time // of repairs
	var again time.Time    // when to look without an event
	for {
		if err := c.events.wait(ctx, again); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch host: %w", err)
		}
		recent = dropOld(recent, time.Now().Add(-repairWindow))
		again = time.Time{}
		did, err := c.repair(len(recent) < repairMost)
		if did {
			recent = append(recent, time.Now())
		}
		if err != nil {
			c.cfg.Logger.Warn("host could not be put right", "err", err)
			again = time.Now().Add(repairWindow / repairMost)
		}
		now, err := c.fingerprint()
		if err != nil {
			return err
		}
		if now == last {
			continue
		}
		last = now
		if err := c.Recheck(); err != nil {
			c.cfg.Logger.Warn("host could not be tested again", "err", err)
		}
		changed()
	}
}

func dropOld(times []time.Time, before time.Time) []time.Time {
	for len(times) > 0 && times[0].Before(before) {
		times = times[1:]
	}
	return times
}

// errSuspended says that something is missing and is not put back now.
var errSuspended = errors.New("our rules or routes were taken away too often: left as they are for now")

// repair puts back what is missing of ours, if it may, and reports whether it did.
func (c *Capture) repair(may bool) (did bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, nil
	}
	rules, err := c.table.missingRules()
	if err != nil {
		return false, err
	}
	ours, _, err := c.table.stands()
	if err != nil {
		return false, err
	}
	routes := 0
	for r := range c.table.have {
		if _, ok := ours[r]; !ok {
			routes++
		}
	}
	missing := rules+routes > 0
	c.repairs.Suspended = missing && !may
	if !missing || !may {
		if missing {
			return false, errSuspended
		}
		return false, nil
	}
	c.repairs.Rules += rules
	c.repairs.Routes += routes
	c.cfg.Logger.Warn("putting back what others took away", "rules", rules, "routes", routes)
	// A device that was down has lost its IPv6 addresses too.
	err = c.rt.do(unix.EEXIST, linkUp(c.index, 0), addAddr(c.index, c.table.from4))
	if c.table.from6.IsValid() {
		err = errors.Join(err, c.rt.do(unix.EEXIST, addAddr(c.index, c.table.from6)))
	}
	if rules > 0 {
		err = errors.Join(err, c.table.addRules(c.state.at))
	}
	c.table.have = ours
	return true, errors.Join(err, c.applyLocked())
}

// fingerprint sums up what the host's own networking is: another one means that
// something changed.
func (c *Capture) fingerprint() (uint64, error) {
	sum := uint64(0)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := c.rt.routes(family, 0)
		if err != nil {
			return 0, err
		}
		rules, err := c.rt.rules(family)
		if err != nil {
			return 0, err
		}
		add := func(what any) { // in any order
			h := fnv.New64a()
			fmt.Fprint(h, what)
			sum += h.Sum64()
		}
		for _, r := range routes {
			if r.protocol != protoNasp && r.index != c.index {
				add(r)
			}
		}
		for _, k := range rules {
			if !k.ours() {
				add(k)
			}
		}
	}
	return sum, nil
}

// Recheck tests all addresses and ranges again, the virtual one too. What collides now
// moves; what has moved stays where it is.
func (c *Capture) Recheck() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.tested = false
	err := c.recheckVirtualLocked()
	addrs := make([]netip.Addr, 0, len(c.mesh))
	for a := range c.mesh {
		addrs = append(addrs, a)
	}
	return errors.Join(err, c.testLocked(addrs), c.applyLocked())
}

// recheckVirtualLocked moves a virtual range that is somebody else's by now.
func (c *Capture) recheckVirtualLocked() error {
	all, err := c.rt.occupied(c.index)
	if err != nil {
		return err
	}
	for _, f := range c.table.families() {
		by := c.virtualOwner(f, all)
		if by == nil {
			continue
		}
		if c.pinned(f) {
			c.cfg.Logger.Warn("pinned virtual range is taken on this host", "range", c.virtual[f].prefix, "owner", by.String())
			continue
		}
		c.cfg.Logger.Warn("virtual range is taken on this host, moving", "range", c.virtual[f].prefix, "owner", by.String())
		if err := c.chooseVirtual(f, all); err != nil {
			return err
		}
		if err := c.moveDeviceLocked(f); err != nil {
			return err
		}
	}
	return c.saveVirtual()
}

// moveDeviceLocked gives the TUN its address in the new range. The routes that name
// the old one as source are replaced before it goes: the kernel would drop them
// with it.
func (c *Capture) moveDeviceLocked(f int) error {
	old, next := c.table.from4, c.virtual[f].device()
	if f == unix.AF_INET6 {
		old = c.table.from6
	}
	if err := c.rt.do(unix.EEXIST, addAddr(c.index, next)); err != nil {
		return fmt.Errorf("add address %v: %w", next, err)
	}
	if f == unix.AF_INET6 {
		c.table.from6 = next
	} else {
		c.table.from4 = next
	}
	var list []tableRoute
	for r := range c.table.have {
		if r.kind == unix.RTN_UNICAST && family(r.dst.Addr()) == f {
			list = append(list, r)
		}
	}
	if err := c.table.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, list); err != nil {
		return err
	}
	if err := c.rt.do(unix.EADDRNOTAVAIL, delAddr(c.index, old)); err != nil {
		return fmt.Errorf("delete address %v: %w", old, err)
	}
	return nil
}
