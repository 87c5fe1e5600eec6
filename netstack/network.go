// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"fmt"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID tcpip.NICID = 1

const (
	// Buffers of a TCP connection. Half the free receive buffer is advertised
	// as window: 128 KiB, gVisor's default and so a window of one superpacket,
	// halves the rate of an upload, 512 KiB and more are flat. The hop over
	// the device takes 100 us, so that a larger buffer than 4 MiB would only
	// be filled by what a slow upstream does not take.
	minBuffer     = 4 << 10
	defaultBuffer = 1 << 20
	maxBuffer     = 4 << 20

	// timeWait is how long a connection that we closed first keeps its
	// address. gVisor gives a SYN to such an address to nobody, and the
	// client's kernel, which is in no TIME_WAIT, takes its ports again soon:
	// with 60 s, gVisor's default, the rate of new connections collapses. The
	// packets that TIME_WAIT guards against cannot be under way: the device
	// keeps order. What reuse there is in between is dealt with in onSYN.
	timeWait = 50 * time.Millisecond

	// lingerTimeout is how long a connection that was closed waits for the
	// client's FIN (FIN_WAIT_2).
	lingerTimeout = 30 * time.Second

	// Keepalive finds clients that vanished without a word, such as a network
	// namespace that was torn down: after 60 + 9*30 s.
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 30 * time.Second
	keepaliveCount    = 9
)

// newNetwork returns a gVisor stack that takes every packet of the link for
// its own.
func newNetwork(link stack.LinkEndpoint) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			// A point-to-point device has no routers to solicit.
			ipv6.NewProtocolWithOptions(ipv6.Options{
				NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled},
			}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := setTCPOptions(s); err != nil {
		s.Destroy()
		return nil, err
	}
	if err := s.CreateNIC(nicID, link); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("create interface: %s", err)
	}
	// Packets for any address come in, and leave with any address.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("set promiscuous mode: %s", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("set spoofing: %s", err)
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return s, nil
}

// setTCPOptions sets what differs from gVisor's defaults.
//
// RACK is off: its tail loss probe fires after twice the round trip, which is
// 100 us here, so that what it measures is how long a busy machine lets a
// goroutine wait. Each such probe of nothing lost halves the congestion window
// and cuts the superpackets up: a mean of 25 to 50 KB in place of 63 KB, and
// no retransmits at all without it (256 MiB down, two cores, load 9). A packet
// that is lost all the same, for want of room in the device's queue, is found
// by SACK.
func setTCPOptions(s *stack.Stack) error {
	var (
		sack     = tcpip.TCPSACKEnabled(true)
		moderate = tcpip.TCPModerateReceiveBufferOption(true)
		delay    = tcpip.TCPDelayEnabled(false)
		receive  = tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
		send     = tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
		wait     = tcpip.TCPTimeWaitTimeoutOption(timeWait)
		linger   = tcpip.TCPLingerTimeoutOption(lingerTimeout)
		noRACK   = tcpip.TCPRecovery(0)
	)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &delay, &receive, &send, &wait, &linger, &noRACK} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("set %T: %s", opt, err)
		}
	}
	return nil
}

// addr converts an address of gVisor. An IPv4-mapped IPv6 address stays what
// it was on the wire.
func addr(a tcpip.Address) netip.Addr {
	if a.Len() == header.IPv4AddressSize {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}

// endpoints returns the client's address and the one that it asked for.
func endpoints(id stack.TransportEndpointID) (src, dst netip.AddrPort) {
	return netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort),
		netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort)
}
