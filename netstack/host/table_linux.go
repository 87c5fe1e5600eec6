// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Metrics of our routes, each kind its own so that one can stand before another of the
// same destination goes. The unreachable one has the lowest preference that there is:
// it shows when the device is gone. IPv6 knows no 0.
const (
	metricDevice4     = 0
	metricDevice6     = 1024
	metricThrow       = 2048
	metricUnreachable = 4294967294
)

// A tableRoute is a route of ours in the capture table.
type tableRoute struct {
	dst  netip.Prefix
	kind uint8 // RTN_UNICAST: into the TUN; RTN_UNREACHABLE: behind that; RTN_THROW: as the host's own rules say
}

// A routeTable is our part of the capture table and the rules that lead to it. Its
// owner serializes.
type routeTable struct {
	rt        *rtnl
	index     int        // of the TUN
	from4     netip.Addr // the source of what an application sends without binding
	from6     netip.Addr // invalid: no IPv6
	forwarded bool

	have map[tableRoute]struct{}
}

// families returns those that the host has.
func (t *routeTable) families() []int {
	if t.from6.IsValid() {
		return []int{unix.AF_INET, unix.AF_INET6}
	}
	return []int{unix.AF_INET}
}

// request makes RTM_NEWROUTE or RTM_DELROUTE for a route. Deleting names the protocol
// and all else, so that nobody else's route of the same prefix is met.
func (t *routeTable) request(verb, flags int, r tableRoute) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(verb, flags|unix.NLM_F_ACK)
	msg := nl.NewRtMsg()
	v6 := r.dst.Addr().Is6()
	msg.Family, msg.Dst_len = uint8(family(r.dst.Addr())), uint8(r.dst.Bits())
	msg.Table, msg.Protocol, msg.Type, msg.Scope = 0, protoNasp, r.kind, unix.RT_SCOPE_UNIVERSE
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(unix.RTA_DST, r.dst.Addr().AsSlice()))
	q.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(CaptureTable)))
	metric := uint32(metricDevice4)
	if v6 {
		metric = metricDevice6
	}
	switch r.kind {
	case unix.RTN_UNICAST:
		msg.Scope = unix.RT_SCOPE_LINK
		q.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(t.index))))
		from := t.from4
		if v6 {
			from = t.from6
		}
		if verb == unix.RTM_NEWROUTE {
			q.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, from.AsSlice()))
		}
	case unix.RTN_UNREACHABLE:
		metric = metricUnreachable
	case unix.RTN_THROW:
		metric = metricThrow
	}
	if metric != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(metric)))
	}
	return q
}

// stands lists what is in the capture table now: ours, by protocol, and the first
// route that is not.
func (t *routeTable) stands() (ours map[tableRoute]struct{}, foreign *kernelRoute, err error) {
	ours = make(map[tableRoute]struct{})
	for _, family := range t.families() {
		list, err := t.rt.routes(family, CaptureTable)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range list {
			switch {
			case r.protocol != protoNasp:
				foreign = &r
			case r.kind != unix.RTN_UNICAST || r.index == t.index:
				ours[tableRoute{r.dst, r.kind}] = struct{}{}
			}
		}
	}
	return ours, foreign, nil
}

// apply makes the table say wanted: the new stand before the old go. What really
// stands afterwards is in t.have, whatever went wrong.
func (t *routeTable) apply(wanted map[tableRoute]struct{}) error {
	var add, del []tableRoute
	for r := range wanted {
		if _, ok := t.have[r]; !ok && (r.dst.Addr().Is4() || t.from6.IsValid()) {
			add = append(add, r)
		}
	}
	for r := range t.have {
		if _, ok := wanted[r]; !ok {
			del = append(del, r)
		}
	}
	// Within a destination the unreachable one first, so that at no moment the
	// device's stands without it.
	slices.SortFunc(add, func(a, b tableRoute) int { return int(b.kind) - int(a.kind) })
	slices.SortFunc(del, func(a, b tableRoute) int { return int(a.kind) - int(b.kind) })
	return errors.Join(t.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, add),
		t.change(unix.RTM_DELROUTE, 0, del))
}

// maxRouteErrors is how many routes an error names.
const maxRouteErrors = 3

func (t *routeTable) change(verb, flags int, list []tableRoute) error {
	if len(list) == 0 {
		return nil
	}
	reqs := make([]*nl.NetlinkRequest, len(list))
	for i, r := range list {
		reqs[i] = t.request(verb, flags, r)
	}
	word, fine := "add", unix.EEXIST
	if verb == unix.RTM_DELROUTE {
		word, fine = "delete", unix.ESRCH
	}
	failed := 0
	var errs []error
	err := t.rt.each(reqs, func(i int, _ nlMessage, err error) {
		switch {
		case err != nil && !errors.Is(err, fine):
			if failed++; failed <= maxRouteErrors {
				errs = append(errs, fmt.Errorf("%s route %v: %w", word, list[i].dst, err))
			}
		case verb == unix.RTM_DELROUTE:
			delete(t.have, list[i])
		default:
			t.have[list[i]] = struct{}{}
		}
	})
	if failed > maxRouteErrors {
		errs = append(errs, fmt.Errorf("%s: %d more routes failed", word, failed-maxRouteErrors))
	}
	return errors.Join(append(errs, err)...)
}

// addRules adds our rules for all families.
func (t *routeTable) addRules(step func(string)) error {
	for _, family := range t.families() {
		for _, priority := range ruleOrder {
			if err := t.rt.addRule(family, priority, t.forwarded); err != nil {
				return err
			}
			step(fmt.Sprintf("rule %d of family %d", priority, family))
		}
	}
	return nil
}

// missingRules returns how many of our rules do not stand.
func (t *routeTable) missingRules() (n int, err error) {
	for _, family := range t.families() {
		list, err := t.rt.rules(family)
		if err != nil {
			return n, err
		}
		for _, priority := range ruleOrder {
			if !slices.ContainsFunc(list, func(k kernelRule) bool { return k.ours() && int(k.priority) == priority }) {
				n++
			}
		}
	}
	return n, nil
}
