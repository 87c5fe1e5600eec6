// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
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
	return "goes to " + c.rt.deviceName(route.index)
}

// warnings names what of the host makes a capture work only in part.
func (c *Capture) warnings() (list []string) {
	if len(c.cfg.Ranges) == 0 {
		return nil
	}
	// An answer to a marked packet is looked up without the mark, and then the way
	// back to an address of the range is the TUN, not the uplink.
	if strict := strictUplinks(c.cfg.Device); len(strict) > 0 {
		list = append(list, fmt.Sprintf("rp_filter is strict on %s: addresses within captured ranges cannot be reached past the mesh; "+
			"set net.ipv4.conf.%s.rp_filter=2", strings.Join(strict, ", "), strict[0]))
	}
	return list
}

// strictUplinks returns the devices that drop packets whose way back is another one.
func strictUplinks(except string) (list []string) {
	const conf = "/proc/sys/net/ipv4/conf"
	devices, err := os.ReadDir(conf)
	if err != nil {
		return nil
	}
	mode := func(device string) int {
		text, _ := os.ReadFile(conf + "/" + device + "/rp_filter")
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	all := mode("all")
	for _, d := range devices {
		switch name := d.Name(); name {
		case "all", "default", "lo", except:
		default:
			if max(all, mode(name)) == 1 { // the larger one holds: ip-sysctl
				list = append(list, name)
			}
		}
	}
	return list
}
