// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// loopbackIndex is lo's in every network namespace.
const loopbackIndex = 1

// Metrics of the IPv6 default routes: the unreachable one always stands behind,
// so that taking the other away refuses at once instead of leaving a gap.
const (
	metricDefault6     = 1024
	metricUnreachable6 = 4096
)

var (
	any4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	any6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// network configures lo and the TUN of this network namespace.
func (s *stage) network(r *report) error {
	index, err := deviceIndex(s.plan.Name)
	if err != nil {
		return err
	}
	r.Index = index
	if err := s.rt.do(0, linkUp(loopbackIndex, 0)); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	r.HasIPv6 = err == nil
	if r.HasIPv6 {
		// Before the device is up, or it asks for routers at once.
		conf := "net/ipv6/conf/" + s.plan.Name + "/"
		_ = writeSysctl(conf+"disable_ipv6", "0")
		_ = writeSysctl(conf+"accept_ra", "0")
		_ = s.rt.do(0, noLinkLocal(index))
	}
	if err := s.rt.do(0, linkUp(index, s.plan.MTU)); err != nil {
		return fmt.Errorf("bring up %s: %w", s.plan.Name, err)
	}
	if err := s.rt.do(0, addAddr(index, DeviceAddr)); err != nil {
		return fmt.Errorf("add address %v: %w", DeviceAddr, err)
	}
	if err := s.rt.do(0, routeSpec{dst: any4, index: index}.add()); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	if r.HasIPv6 {
		if err := s.network6(index); err != nil {
			r.HasIPv6 = false
			r.Warnings = append(r.Warnings, fmt.Sprintf("no IPv6 inside: %v", err))
		}
	}
	allowPing()
	reusePorts()
	return nil
}

func (s *stage) network6(index int) error {
	if err := s.rt.do(0, addAddr(index, DeviceAddr6)); err != nil {
		return fmt.Errorf("add address %v: %w", DeviceAddr6, err)
	}
	if err := s.rt.do(0, routeSpec{dst: any6, metric: metricUnreachable6}.add()); err != nil {
		return fmt.Errorf("add unreachable IPv6 route: %w", err)
	}
	if !s.plan.IPv6 {
		return nil
	}
	if err := s.rt.do(0, default6(index).add()); err != nil {
		return fmt.Errorf("add IPv6 default route: %w", err)
	}
	return nil
}

// default6 is the route that stands while the host reaches IPv6.
func default6(index int) routeSpec {
	return routeSpec{dst: any6, index: index, metric: metricDefault6}
}

func deviceIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("index of %s: %w", name, err)
	}
	return int(ifr.Uint32()), nil
}

// allowPing lets everybody inside send echo requests without raw sockets. All
// groups at once where they exist in this user namespace, else our own.
func allowPing() {
	const sysctl = "net/ipv4/ping_group_range"
	if writeSysctl(sysctl, "0 2147483647") != nil {
		_ = writeSysctl(sysctl, fmt.Sprintf("%d %d", os.Getgid(), os.Getgid()))
	}
}

// reusePorts lets a port that is in TIME_WAIT be used again after a second, by
// the time stamps of TCP. A client that closes first would else have 28,000
// connections to one service a minute and then wait in its own kernel: with wrk
// and Connection: close, 4,200 requests a second became 400.
func reusePorts() { _ = writeSysctl("net/ipv4/tcp_tw_reuse", "1") }

// writeSysctl sets one of this network namespace: /proc/sys/net shows that of
// the process that opens it.
func writeSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// sockets binds those that the parent serves: a resolver at each address where
// the host's resolv.conf promises one, and the host's own ports.
func (s *stage) sockets(r *report) ([]int, error) {
	var wanted []inside
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		for _, a := range s.plan.Stubs {
			if a.Is4() || r.HasIPv6 {
				wanted = append(wanted, inside{typ, netip.AddrPortFrom(a, 53)})
			}
		}
	}
	r.UDP = len(wanted) / 2
	r.TCP = r.UDP
	for _, port := range s.plan.HostPorts {
		wanted = append(wanted, inside{unix.SOCK_STREAM, netip.AddrPortFrom(localServer.Addr(), port)})
	}
	fds, err := listenAll(wanted)
	if errors.Is(err, unix.EACCES) {
		fds, err = listenLow(wanted)
	}
	return fds, err
}

// listenLow listens where ports below 1024 are not ours by capability: it makes
// them everybody's for a moment in which nobody else is inside.
func listenLow(wanted []inside) ([]int, error) {
	const sysctl = "net/ipv4/ip_unprivileged_port_start"
	before, err := os.ReadFile("/proc/sys/" + sysctl)
	if err != nil {
		return nil, err
	}
	if err := writeSysctl(sysctl, "0"); err != nil {
		return nil, err
	}
	fds, err := listenAll(wanted)
	return fds, errors.Join(err, writeSysctl(sysctl, strings.TrimSpace(string(before))))
}

// An inside is a socket to bind in the private network.
type inside struct {
	typ  int
	addr netip.AddrPort
}

func listenAll(wanted []inside) (fds []int, err error) {
	for _, w := range wanted {
		fd, err := w.listen()
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("listen on %v inside: %w", w.addr, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func (w inside) listen() (int, error) {
	fd, err := unix.Socket(family(w.addr.Addr()), w.typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	err = unix.Bind(fd, sockaddr(w.addr))
	if err == nil && w.typ == unix.SOCK_STREAM {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
