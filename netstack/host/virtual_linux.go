// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// virtualMagic begins the file in which a session keeps its virtual ranges and what
// each address of them stands for.
const virtualMagic = "nasp-tun virtual"

// savedVirtual is what is kept of the virtual ranges.
type savedVirtual struct {
	Ranges []savedRange `json:"ranges"`
}

type savedRange struct {
	Prefix netip.Prefix          `json:"prefix"`
	Next   uint32                `json:"next"`
	Slots  map[netip.Addr]uint32 `json:"slots"` // real address -> place in the range
}

func (c *Capture) virtualName() string { return c.state.name + ".virtual" }

// loadVirtual takes up the ranges of the run before, unless others are pinned or they
// are taken by now, and chooses those that are missing.
func (c *Capture) loadVirtual(families []int) error {
	c.readVirtual()
	for _, p := range c.cfg.Virtual {
		c.setVirtual(family(p.Addr()), p)
	}
	all, err := c.rt.occupied(c.index)
	if err != nil {
		return err
	}
	wanted := map[int]*virtualRange{}
	for _, f := range families {
		by := c.virtualOwner(f, all)
		if by != nil && c.pinned(f) {
			return fmt.Errorf("virtual range %v is taken on this host by %v", c.virtual[f].prefix, by)
		}
		if c.virtual[f] == nil || by != nil {
			if err := c.chooseVirtual(f, all); err != nil {
				return err
			}
		}
		wanted[f] = c.virtual[f]
	}
	c.virtual = wanted
	return nil
}

// readVirtual reads what is kept. What cannot be trusted is as good as none: nothing
// of the host hangs on it.
func (c *Capture) readVirtual() {
	text, err := c.state.read(c.virtualName())
	if err != nil {
		return
	}
	var kept savedVirtual
	if err := unseal(virtualMagic, text, &kept); err != nil {
		c.cfg.Logger.Warn("virtual addresses of the last run are lost", "err", err)
		return
	}
	for _, r := range kept.Ranges {
		if CheckVirtual(r.Prefix) != nil {
			continue
		}
		v := newVirtualRange(r.Prefix)
		v.next = max(r.Next, virtualReserved)
		for real, slot := range r.Slots {
			if _, twice := v.used[slot]; !twice && slot >= virtualReserved && slot < v.size() {
				v.slot[real], v.used[slot] = slot, real
			}
		}
		c.virtual[family(r.Prefix.Addr())] = v
	}
}

func (c *Capture) saveVirtual() error {
	var kept savedVirtual
	for _, f := range c.table.families() {
		v := c.virtual[f]
		kept.Ranges = append(kept.Ranges, savedRange{Prefix: v.prefix, Next: v.next, Slots: v.slot})
	}
	text, err := seal(virtualMagic, kept)
	if err == nil {
		err = c.state.write(c.virtualName(), text)
	}
	if err != nil {
		return fmt.Errorf("save virtual addresses: %w", err)
	}
	return nil
}

func (c *Capture) pinned(f int) bool {
	for _, p := range c.cfg.Virtual {
		if family(p.Addr()) == f {
			return true
		}
	}
	return false
}

// setVirtual changes a range. Places are kept where the new one has them too.
func (c *Capture) setVirtual(f int, p netip.Prefix) {
	p = p.Masked()
	old := c.virtual[f]
	if old != nil && old.prefix == p {
		return
	}
	v := newVirtualRange(p)
	if old != nil {
		for real, slot := range old.slot {
			if slot < v.size() {
				v.slot[real], v.used[slot] = slot, real
			}
		}
		v.next = min(old.next, v.size()-1)
	}
	c.virtual[f] = v
}

// virtualOwner returns who else has a part of the range.
func (c *Capture) virtualOwner(f int, all []Collision) *Collision {
	if c.virtual[f] == nil {
		return nil
	}
	for _, p := range c.cfg.Ranges {
		if p.Overlaps(c.virtual[f].prefix) {
			return &Collision{Prefix: p}
		}
	}
	return virtualOverlap(c.virtual[f].prefix, all)
}

// leastOwner6 is how long an IPv6 route must be to count against a virtual range: a
// random /64 under somebody's fd00::/8 is not in use there.
const leastOwner6 = 17

func virtualOverlap(p netip.Prefix, all []Collision) *Collision {
	for i := range all {
		if by := all[i].Prefix; by.Overlaps(p) && (by.Addr().Is4() || by.Bits() >= leastOwner6) {
			return &all[i]
		}
	}
	return nil
}

// chooseVirtual takes the first free range.
func (c *Capture) chooseVirtual(f int, all []Collision) error {
	for _, p := range c.cfg.Ranges {
		all = append(all, Collision{Prefix: p})
	}
	// The seed only spreads machines over the candidates: what is chosen is kept.
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	candidates := virtualCandidates(r.Uint64())
	if f == unix.AF_INET6 {
		candidates = []netip.Prefix{virtualULA(r), virtualULA(r), virtualULA(r)}
	}
	for _, p := range candidates {
		if virtualOverlap(p, all) == nil {
			c.setVirtual(f, p)
			return nil
		}
	}
	return errors.New("no free virtual range on this host: name one by --virtual-cidr")
}
