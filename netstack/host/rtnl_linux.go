// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rtnlBatch is how many requests are sent at once: 10,000 routes so take 60 ms in
// place of 300 one by one.
const rtnlBatch = 200

// An rtnl speaks rtnetlink on one socket, which may belong to another network
// namespace: a socket keeps the one that it was made in, and the kernel lets the
// owner of the namespace's user namespace use it from outside. The netlink module
// accepts no foreign socket, so only its encoding is used.
type rtnl struct {
	fd int

	mu  sync.Mutex
	seq uint32
	buf []byte // what was received last, and the messages in it
}

func newRTNL() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket rtnetlink", err)
	}
	// Acknowledge without repeating the request, so that a batch's answers fit.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return &rtnl{fd: fd}, nil
}

func (r *rtnl) close() error { return unix.Close(r.fd) }

// do sends the requests and reads the answer to each; the errors are joined, but
// for those that say fine. One that failed does not keep the others from being
// carried out.
func (r *rtnl) do(fine unix.Errno, reqs ...*nl.NetlinkRequest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for len(reqs) > 0 {
		n := min(len(reqs), rtnlBatch)
		if err := r.batchLocked(fine, reqs[:n]); err != nil {
			errs = append(errs, err)
		}
		reqs = reqs[n:]
	}
	return errors.Join(errs...)
}

func (r *rtnl) batchLocked(fine unix.Errno, reqs []*nl.NetlinkRequest) error {
	var b []byte
	first := r.seq + 1
	for _, q := range reqs {
		r.seq++
		q.Seq = r.seq
		q.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_ACK
		b = append(b, q.Serialize()...)
	}
	if err := unix.Sendto(r.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto rtnetlink", err)
	}
	var errs []error
	for left := len(reqs); left > 0; {
		msgs, err := r.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR || m.Header.Seq < first || m.Header.Seq > r.seq {
				continue
			}
			left--
			if len(m.Data) < 4 {
				errs = append(errs, errors.New("rtnetlink: short acknowledgement"))
			} else if e := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))); e != 0 && e != fine {
				errs = append(errs, e)
			}
		}
	}
	return errors.Join(errs...)
}

// receive returns the messages of one datagram. They are good until the next call:
// each acknowledgement comes in a datagram of its own.
func (r *rtnl) receive() ([]nlMessage, error) {
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	for {
		n, _, err := unix.Recvfrom(r.fd, r.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, os.NewSyscallError("recvfrom rtnetlink", err)
		default:
			return parseNetlink(r.buf[:n])
		}
	}
}

// An nlMessage is one netlink message.
type nlMessage struct {
	Header unix.NlMsghdr
	Data   []byte
}

// parseNetlink splits a datagram into messages.
func parseNetlink(b []byte) ([]nlMessage, error) {
	var out []nlMessage
	for len(b) >= unix.SizeofNlMsghdr {
		h := unix.NlMsghdr{
			Len:   binary.NativeEndian.Uint32(b),
			Type:  binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]),
			Seq:   binary.NativeEndian.Uint32(b[8:]),
			Pid:   binary.NativeEndian.Uint32(b[12:]),
		}
		if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return out, fmt.Errorf("netlink: message of %d bytes in %d", h.Len, len(b))
		}
		out = append(out, nlMessage{h, b[unix.SizeofNlMsghdr:h.Len]})
		b = b[min(len(b), int(h.Len+3)&^3):]
	}
	return out, nil
}

// linkUp brings the device up, with the given MTU unless that is 0, and as quiet
// as a TUN can be: no IPv6 link-local address and no multicast, since netstack
// answers neither router solicitations nor IGMP.
func linkUp(index, mtu int) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	q.AddData(msg)
	if mtu != 0 {
		msg.Change |= unix.IFF_MULTICAST
		q.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	return q
}

// noLinkLocal keeps the kernel from giving the device an fe80:: address.
func noLinkLocal(index int) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	q.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	inet6 := nl.NewRtAttr(unix.AF_INET6, nil)
	inet6.AddChild(nl.NewRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl.IN6_ADDR_GEN_MODE_NONE}))
	spec.AddChild(inet6)
	q.AddData(spec)
	return q
}

// addAddr gives the device an address of its own, without a prefix round it.
func addAddr(index int, a netip.Addr) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(family(a))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(a.BitLen())
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	q.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	if a.Is6() {
		// Nobody else is on a TUN, and an address under test cannot be bound.
		q.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
	}
	return q
}

// routeSpec is a route to the device, or of kind unreachable if index is 0.
type routeSpec struct {
	dst    netip.Prefix
	index  int
	metric uint32 // lower wins; 0: the kernel's choice
}

// request makes RTM_NEWROUTE or RTM_DELROUTE for the route.
func (s routeSpec) request(verb, flags int) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(verb, flags)
	msg := nl.NewRtMsg()
	msg.Family = uint8(family(s.dst.Addr()))
	msg.Dst_len = uint8(s.dst.Bits())
	msg.Protocol = protoNasp
	if s.index == 0 {
		msg.Type = unix.RTN_UNREACHABLE
	} else {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	q.AddData(msg)
	if s.dst.Bits() > 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_DST, s.dst.Addr().AsSlice()))
	}
	if s.index != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(s.index))))
	}
	if s.metric != 0 {
		q.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(s.metric)))
	}
	return q
}

func (s routeSpec) add() *nl.NetlinkRequest {
	return s.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
}

func (s routeSpec) del() *nl.NetlinkRequest { return s.request(unix.RTM_DELROUTE, 0) }

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
