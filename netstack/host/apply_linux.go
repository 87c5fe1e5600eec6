// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// maxMesh bounds how many addresses of a mesh are captured: each costs the kernel two
// routes. Ten times what the largest known meshes have.
const maxMesh = 200_000

// A translation maps between the addresses that the mesh has and those that this host
// uses for them. It is immutable.
type translation struct{ toVirtual, toReal map[netip.Addr]netip.Addr }

func (t *translation) virtual(real netip.Addr) netip.Addr {
	if t != nil {
		if v, ok := t.toVirtual[real]; ok {
			return v
		}
	}
	return real
}

// Map returns the address by which this host reaches an address of the mesh: itself,
// or one of the virtual range if somebody else owns it here. Names get that one. It is
// for the data path: it takes no lock.
func (c *Capture) Map(real netip.Addr) netip.Addr { return c.names.Load().virtual(real) }

// Real returns the address of the mesh that one of this host stands for. It is the way
// back of [Capture.Map].
func (c *Capture) Real(addr netip.Addr) netip.Addr {
	if t := c.names.Load(); t != nil {
		if real, ok := t.toReal[addr]; ok {
			return real
		}
	}
	return addr
}

// Apply captures the addresses of the mesh, in place of those of the call before. Each
// is tested first: one that somebody else owns here moves to the virtual range. The
// difference alone is told to the kernel, and the new stand before the old go. What it
// costs besides grows with the mesh, to 10 ms for 10,000 addresses: the caller gathers
// changes that come in quick succession. After an error [Capture.Status] tells what really stands, and the next call tries again.
func (c *Capture) Apply(mesh []netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.New("apply: capture is closed")
	}
	next := make(map[netip.Addr]struct{}, len(mesh))
	dropped := 0
	for _, a := range mesh {
		a = a.Unmap().WithZone("")
		if !a.IsValid() || unusable(netip.PrefixFrom(a, a.BitLen())) || a.Is6() && !c.table.from6.IsValid() {
			continue
		}
		if len(next) == maxMesh {
			dropped++
			continue
		}
		next[a] = struct{}{}
	}
	var fresh []netip.Addr
	for a := range next {
		if _, known := c.mesh[a]; !known {
			fresh = append(fresh, a)
		}
	}
	c.mesh = next
	err := c.testLocked(fresh)
	if dropped > 0 {
		err = errors.Join(err, fmt.Errorf("apply: %d addresses beyond the limit of %d", dropped, maxMesh))
	}
	return errors.Join(err, c.applyLocked())
}

// testLocked decides which of the addresses move. What has moved once stays: its
// address may be cached.
func (c *Capture) testLocked(addrs []netip.Addr) error {
	if len(c.moved) > maxMesh {
		maps.DeleteFunc(c.moved, func(a netip.Addr, _ Collision) bool { _, live := c.mesh[a]; return !live })
	}
	var ask []netip.Addr
	for _, a := range addrs {
		if _, moved := c.moved[a]; moved {
			continue
		}
		if c.cfg.VirtualAll {
			c.moved[a] = Collision{}
			continue
		}
		ask = append(ask, a)
	}
	found, err := c.rt.collisions(ask)
	for a, by := range found {
		c.moved[a] = by
		c.cfg.Logger.Warn("address is taken on this host, using a virtual one", "dst", a, "owner", by.String())
	}
	return err
}

// applyLocked brings the kernel's routes in line with what is wanted.
func (c *Capture) applyLocked() error {
	c.testRangesLocked()
	names, err := c.translateLocked()
	wanted := c.wantedLocked(names)
	c.state.at("routes before")
	err = errors.Join(err, c.table.apply(wanted))
	c.state.at("routes after")
	// The names follow the routes, or an application could be told an address that
	// leads nowhere yet.
	old := c.names.Swap(names)
	if old == nil || !maps.Equal(old.toVirtual, names.toVirtual) {
		err = errors.Join(err, c.saveVirtual())
	}
	return err
}

// translateLocked gives each moved address its virtual one.
func (c *Capture) translateLocked() (*translation, error) {
	t := &translation{toVirtual: map[netip.Addr]netip.Addr{}, toReal: map[netip.Addr]netip.Addr{}}
	live := func(a netip.Addr) bool { _, ok := c.mesh[a]; return ok }
	var errs error
	for _, real := range slices.SortedFunc(maps.Keys(c.moved), netip.Addr.Compare) {
		if !live(real) {
			continue
		}
		v, err := c.virtual[family(real)].assign(real, live)
		if err != nil {
			errs = err // the same for all that follow
			continue
		}
		t.toVirtual[real], t.toReal[v] = v, real
	}
	return t, errs
}

// wantedLocked lists the routes that there should be.
func (c *Capture) wantedLocked(names *translation) map[tableRoute]struct{} {
	wanted := make(map[tableRoute]struct{}, 2*len(c.mesh)+8)
	add := func(p netip.Prefix, kinds ...uint8) {
		for _, k := range kinds {
			wanted[tableRoute{p, k}] = struct{}{}
		}
	}
	for _, f := range c.table.families() {
		add(c.virtual[f].prefix, unix.RTN_UNICAST, unix.RTN_UNREACHABLE)
	}
	for a := range c.mesh {
		if _, moved := c.moved[a]; !moved {
			add(netip.PrefixFrom(a, a.BitLen()), unix.RTN_UNICAST, unix.RTN_UNREACHABLE)
		}
	}
	for _, p := range c.cfg.Ranges {
		if p.Addr().Is6() && !c.table.from6.IsValid() || slices.ContainsFunc(c.refused, func(r RefusedRange) bool { return r.Range == p }) {
			continue
		}
		add(p, unix.RTN_UNICAST)
		if c.cfg.Lockdown {
			add(p, unix.RTN_UNREACHABLE)
		}
		for _, a := range c.cfg.Except {
			if _, mesh := c.mesh[a]; !mesh && p.Contains(a) {
				add(netip.PrefixFrom(a, a.BitLen()), unix.RTN_THROW)
			}
		}
	}
	return wanted
}

// testRangesLocked decides which ranges are somebody else's.
func (c *Capture) testRangesLocked() {
	if len(c.cfg.Ranges) == 0 || c.tested {
		return
	}
	all, err := c.rt.occupied(c.index)
	if err != nil {
		c.cfg.Logger.Warn("ranges could not be tested", "err", err)
		return // what was decided last stands
	}
	for _, f := range c.table.families() {
		all = append(all, Collision{Prefix: c.virtual[f].prefix, Device: c.cfg.Device})
	}
	before := c.refused
	c.refused, c.tested = nil, true
	for _, p := range c.cfg.Ranges {
		by := firstOverlap(p, all)
		if by == nil {
			continue
		}
		r := RefusedRange{Range: p, By: *by}
		c.refused = append(c.refused, r)
		if !slices.Contains(before, r) {
			c.cfg.Logger.Warn("range is taken on this host, not captured", "range", p, "owner", by.String())
		}
	}
}
