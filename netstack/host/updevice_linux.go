// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// A DeviceTakenError says that a network device of that name exists already.
type DeviceTakenError struct{ Name string }

func (e *DeviceTakenError) Error() string {
	return fmt.Sprintf("create device %s: there is one of that name", e.Name)
}

// createDevice makes the TUN of the host. Only the file is wanted of the WireGuard
// module: its listeners end before this returns, and the offload that it sets is set
// again without UDP's, which netstack has no use for and some kernels corrupt.
func createDevice(name string, mtu int) (d Device, err error) {
	d = Device{FD: -1, MTU: mtu}
	// The kernel would attach us to a TUN that somebody has made to last.
	if _, err := deviceIndex(name); err == nil {
		return d, &DeviceTakenError{Name: name}
	}
	dev, err := tun.CreateTUN(name, mtu)
	if errors.Is(err, unix.EBUSY) {
		return d, &DeviceTakenError{Name: name}
	}
	if err != nil {
		return d, fmt.Errorf("create device %s: %w", name, err)
	}
	defer func() {
		// Its error is that of a listener which had ended before it was told to.
		_ = dev.Close()
		for range dev.Events() { // until its listeners have ended
		}
	}()
	raw, err := dev.File().SyscallConn()
	if err != nil {
		return d, err
	}
	var dup error
	if err := raw.Control(func(fd uintptr) {
		d.FD, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
	}); err != nil {
		return d, err
	}
	if dup != nil {
		d.FD = -1
		return d, os.NewSyscallError("fcntl", dup)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(d.FD, unix.TUNGETIFF, ifr)
	}
	if err != nil {
		_ = unix.Close(d.FD)
		d.FD = -1
		return d, fmt.Errorf("ask device %s: %w", name, err)
	}
	d.VnetHdr = ifr.Uint16()&unix.IFF_VNET_HDR != 0
	d.TSO = d.VnetHdr && unix.IoctlSetInt(d.FD, unix.TUNSETOFFLOAD, tunOffload) == nil
	return d, nil
}

// setDevice makes the TUN quiet, gives it its addresses and brings it up. Its sysctls
// go with it.
func (r *rtnl) setDevice(name string, index, mtu int, addrs ...netip.Addr) error {
	_ = writeSysctl("net/ipv6/conf/"+name+"/accept_ra", "0")
	_ = r.do(0, noLinkLocal(index)) // fails where there is no IPv6
	if err := r.do(0, linkUp(index, mtu)); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		if err := r.do(0, addAddr(index, a)); err != nil {
			return fmt.Errorf("add address %v to %s: %w", a, name, err)
		}
	}
	return nil
}

// hasIPv6 reports whether the device may have IPv6 addresses. Where an administrator
// has turned IPv6 off we do not turn it on.
func hasIPv6(name string) bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}

// delAddr takes an address from the device.
func delAddr(index int, a netip.Addr) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_DELADDR, 0)
	msg := nl.NewIfAddrmsg(family(a))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(a.BitLen())
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	return q
}
