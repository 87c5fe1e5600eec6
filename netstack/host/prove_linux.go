// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
)

// A ProofError says which layer of the host does not do what it was told.
type ProofError struct {
	Layer string // "route": into the TUN; "mark": past it; "name": the system's resolver
	What  string // address or name
	Got   string // what the host does instead
	Hint  string
	Err   error // may be nil
}

func (e *ProofError) Error() string {
	s := fmt.Sprintf("%s %s: %s", e.Layer, e.What, e.Got)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *ProofError) Unwrap() error { return e.Err }

// Prove asks the kernel where packets to an address of the mesh go: those of any
// program must enter the TUN, and those of our own sockets must not, or they would go
// in circles. An error is a [*ProofError].
func (c *Capture) Prove(mesh netip.Addr) error {
	addr := c.Map(mesh)
	route, err := c.rt.lookup(addr, 0)
	if err != nil || route.index != c.index {
		return &ProofError{
			Layer: "route", What: addr.String(), Got: c.words(route, err), Err: err,
			Hint: "a rule before ours (`ip rule`) or another program's route takes it",
		}
	}
	route, err = c.rt.lookup(addr, MarkOwn)
	if err != nil && !noWay(err) || err == nil && route.index == c.index {
		return &ProofError{
			Layer: "mark", What: addr.String(), Got: c.words(route, err), Err: err,
			Hint: fmt.Sprintf("rule %d must let packets with mark %#x pass (`ip rule`)", ruleBypass, MarkOwn),
		}
	}
	return nil
}

func (c *Capture) words(route kernelRoute, err error) string {
	switch {
	case err != nil:
		return "no route"
	case route.index == c.index:
		return "goes into " + c.cfg.Device
	}
	return "goes to " + deviceLabel(route.index)
}
