// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a dump is begun again because what it lists changed
// meanwhile. A host whose routes never rest gives an answer that may lack one.
const dumpTries = 5

// errAnswer is that of a request to which the kernel said something unreadable.
var errAnswer = errors.New("rtnetlink: unreadable answer")

// each sends the requests in batches and calls got with the one answer to each, in
// any order: a message, or an error. Requests to change something must carry
// NLM_F_ACK, and questions must not. The error returned is that of the socket.
func (r *rtnl) each(reqs []*nl.NetlinkRequest, got func(i int, m nlMessage, err error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for base := 0; base < len(reqs); base += rtnlBatch {
		n := min(len(reqs)-base, rtnlBatch)
		if err := r.eachLocked(reqs[base:base+n], func(i int, m nlMessage, err error) { got(base+i, m, err) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *rtnl) eachLocked(reqs []*nl.NetlinkRequest, got func(i int, m nlMessage, err error)) error {
	first, err := r.sendLocked(reqs)
	if err != nil {
		return err
	}
	for left := len(reqs); left > 0; {
		msgs, err := r.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			i := int(m.Header.Seq - first)
			if i < 0 || i >= len(reqs) {
				continue
			}
			left--
			got(i, m, messageError(m))
		}
	}
	return nil
}

// sendLocked sends requests at once and returns the number of the first.
func (r *rtnl) sendLocked(reqs []*nl.NetlinkRequest) (first uint32, err error) {
	first = r.seq + 1
	var b []byte
	for _, q := range reqs {
		r.seq++
		q.Seq = r.seq
		q.Flags |= unix.NLM_F_REQUEST
		b = append(b, q.Serialize()...)
	}
	err = unix.Sendto(r.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	return first, os.NewSyscallError("sendto rtnetlink", err)
}

// messageError returns the error that a message is, if it is one.
func messageError(m nlMessage) error {
	if m.Header.Type != unix.NLMSG_ERROR {
		return nil
	}
	if len(m.Data) < 4 {
		return errAnswer
	}
	if e := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))); e != 0 {
		return e
	}
	return nil
}

// dump returns every message that answers q.
func (r *rtnl) dump(q *nl.NetlinkRequest) ([]nlMessage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q.Flags |= unix.NLM_F_DUMP
	for try := 1; ; try++ {
		msgs, torn, err := r.dumpLocked(q)
		if err != nil || !torn || try == dumpTries {
			return msgs, err
		}
	}
}

func (r *rtnl) dumpLocked(q *nl.NetlinkRequest) (all []nlMessage, torn bool, err error) {
	seq, err := r.sendLocked([]*nl.NetlinkRequest{q})
	if err != nil {
		return nil, false, err
	}
	for {
		msgs, err := r.receive()
		if err != nil {
			return nil, false, err
		}
		for _, m := range msgs {
			if m.Header.Seq != seq {
				continue
			}
			torn = torn || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return all, torn, nil
			case unix.NLMSG_ERROR:
				return all, torn, messageError(m)
			}
			all = append(all, nlMessage{m.Header, bytes.Clone(m.Data)})
		}
	}
}

// portID returns the number by which the kernel marks the events that this socket
// caused.
func (r *rtnl) portID() uint32 {
	// The number is given out at the first use. In use already is fine.
	_ = unix.Bind(r.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if a, err := unix.Getsockname(r.fd); err == nil {
		if a, ok := a.(*unix.SockaddrNetlink); ok {
			return a.Pid
		}
	}
	return 0
}

// A kernelRoute is what the kernel says of one route.
type kernelRoute struct {
	dst      netip.Prefix
	table    uint32
	protocol uint8
	kind     uint8 // RTN_UNICAST, RTN_LOCAL, …
	index    int   // of the device; 0: none, or several
	metric   uint32
}

// parseRoute reads an RTM_NEWROUTE or RTM_DELROUTE of IPv4 or IPv6.
func parseRoute(m nlMessage) (kernelRoute, error) {
	if len(m.Data) < unix.SizeofRtMsg {
		return kernelRoute{}, errAnswer
	}
	msg := nl.DeserializeRtMsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return kernelRoute{}, fmt.Errorf("rtnetlink: route: %w", err)
	}
	route := kernelRoute{table: uint32(msg.Table), protocol: msg.Protocol, kind: msg.Type}
	addr := netip.IPv4Unspecified()
	if msg.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			if got, ok := netip.AddrFromSlice(a.Value); ok {
				addr = got
			}
		case unix.RTA_TABLE:
			route.table = attrUint32(a.Value)
		case unix.RTA_OIF:
			route.index = int(attrUint32(a.Value))
		case unix.RTA_PRIORITY:
			route.metric = attrUint32(a.Value)
		}
	}
	route.dst = netip.PrefixFrom(addr, int(msg.Dst_len))
	if !route.dst.IsValid() {
		return kernelRoute{}, errAnswer
	}
	return route, nil
}

func attrUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// routes returns the routes of a family in a table, or in all if table is 0. The
// cache of IPv6 exceptions is not among them.
func (r *rtnl) routes(family int, table uint32) ([]kernelRoute, error) {
	q := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	msg := nl.NewRtMsg()
	// All but the family and the table would be a filter.
	msg.Family, msg.Table, msg.Protocol, msg.Scope, msg.Type = uint8(family), 0, 0, 0, 0
	q.AddData(msg)
	if table != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)))
	}
	msgs, err := r.dump(q)
	if err != nil {
		if table != 0 && errors.Is(err, unix.ENOENT) {
			return nil, nil // nobody has used that table yet
		}
		return nil, fmt.Errorf("list routes: %w", err)
	}
	list := make([]kernelRoute, 0, len(msgs))
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWROUTE {
			continue
		}
		route, err := parseRoute(m)
		if err != nil {
			return nil, err
		}
		// Kernels before 4.20 do not filter.
		if table == 0 || route.table == table {
			list = append(list, route)
		}
	}
	return list, nil
}

// strict makes the kernel heed what a dump asks for, where it can (since 4.20).
func (r *rtnl) strict() {
	_ = unix.SetsockoptInt(r.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
}
