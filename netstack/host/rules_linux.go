// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// markMask selects the byte of [MarkOwn] that rule 89 looks at.
const markMask = 0xff000000

// ruleOrder is that of adding. A goto without its target falls into the rule after
// it, which is the capture: so the target comes first, and of what is taken away the
// capture does.
var (
	ruleOrder     = [...]int{ruleTarget, ruleBypass, ruleCapture}
	ruleUndoOrder = [...]int{ruleCapture, ruleBypass, ruleTarget}
)

// ruleRequest makes RTM_NEWRULE or RTM_DELRULE for our rule of that priority. With
// forwarded, packets of others that this host forwards are captured too.
func ruleRequest(verb, flags, family, priority int, forwarded bool) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(verb, flags|unix.NLM_F_ACK)
	msg := nl.NewRtMsg() // laid out as struct fib_rule_hdr, whose action is where Type is
	msg.Family, msg.Table, msg.Protocol, msg.Scope, msg.Type = uint8(family), 0, 0, 0, 0
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(priority))))
	q.AddData(nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(protoNasp)))
	if verb == unix.RTM_DELRULE {
		return q // whatever it says: number and protocol make it ours
	}
	switch priority {
	case ruleBypass:
		msg.Type = nl.FR_ACT_GOTO
		q.AddData(nl.NewRtAttr(nl.FRA_FWMARK, nl.Uint32Attr(MarkOwn&markMask)))
		q.AddData(nl.NewRtAttr(nl.FRA_FWMASK, nl.Uint32Attr(markMask)))
		q.AddData(nl.NewRtAttr(nl.FRA_GOTO, nl.Uint32Attr(ruleTarget)))
	case ruleCapture:
		msg.Type = nl.FR_ACT_TO_TBL
		q.AddData(nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(CaptureTable)))
		if !forwarded {
			q.AddData(nl.NewRtAttr(nl.FRA_IIFNAME, nl.ZeroTerminated("lo")))
		}
	case ruleTarget:
		msg.Type = nl.FR_ACT_NOP
	}
	return q
}

// addRule adds one of our rules; one that stands already is fine.
func (r *rtnl) addRule(family, priority int, forwarded bool) error {
	q := ruleRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, family, priority, forwarded)
	if err := r.do(unix.EEXIST, q); err != nil {
		return fmt.Errorf("add rule %d: %w", priority, err)
	}
	return nil
}

// delRule deletes our rules of that priority, however many there are.
func (r *rtnl) delRule(family, priority int) (n int, err error) {
	for ; ; n++ {
		err := r.do(0, ruleRequest(unix.RTM_DELRULE, 0, family, priority, false))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("delete rule %d: %w", priority, err)
		}
	}
}

// A kernelRule is what the kernel says of one rule.
type kernelRule struct {
	family   int
	priority uint32
	protocol uint8
	action   uint8
	table    uint32
}

func (k kernelRule) ours() bool {
	return k.protocol == protoNasp && k.priority >= ruleBypass && k.priority <= ruleTarget
}

// rules returns all rules of the family.
func (r *rtnl) rules(family int) ([]kernelRule, error) {
	q := nl.NewNetlinkRequest(unix.RTM_GETRULE, 0)
	msg := nl.NewRtMsg()
	msg.Family, msg.Table, msg.Protocol, msg.Scope, msg.Type = uint8(family), 0, 0, 0, 0
	q.AddData(msg)
	msgs, err := r.dump(q)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without IPv6, or without its policy routing
	}
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var list []kernelRule
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWRULE {
			continue
		}
		k, err := parseRule(m)
		if err != nil {
			return nil, err
		}
		if k.family == family { // an unknown family gets everybody's
			list = append(list, k)
		}
	}
	return list, nil
}

func parseRule(m nlMessage) (kernelRule, error) {
	if len(m.Data) < unix.SizeofRtMsg {
		return kernelRule{}, errAnswer
	}
	msg := nl.DeserializeRtMsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return kernelRule{}, fmt.Errorf("rtnetlink: rule: %w", err)
	}
	k := kernelRule{family: int(msg.Family), action: msg.Type, table: uint32(msg.Table)}
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.FRA_PRIORITY:
			k.priority = attrUint32(a.Value)
		case nl.FRA_TABLE:
			k.table = attrUint32(a.Value)
		case nl.FRA_PROTOCOL:
			if len(a.Value) > 0 {
				k.protocol = a.Value[0]
			}
		}
	}
	return k, nil
}
