// SPDX-License-Identifier: Apache-2.0

// Package netstacktest is a client for tests of package netstack: a second
// network stack on the other end of the device, in place of a kernel.
//
// The two are joined by a pair of packet sockets that carry what a TUN device
// carries, vnet header included, so that no privilege is needed and nothing of
// the machine is touched.
package netstacktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/tunlink"
)

const nicID tcpip.NICID = 1

// Addr4 and Addr6 are the client's addresses.
var (
	Addr4 = netip.MustParseAddr("192.0.2.1")
	Addr6 = netip.MustParseAddr("2001:db8::1")
)

// DefaultMTU is the MTU of the device where Options says nothing.
const DefaultMTU = 1500

// Options say what the device between the two stacks is like.
type Options struct {
	MTU   uint32
	Plain bool // without vnet header, as on a system that has none
}

// A Client is the network stack of a machine that has the device.
type Client struct {
	tb   testing.TB
	net  *stack.Stack
	link *tap
	raw  int    // a descriptor of its own to the client's end
	stop func() // ends and joins the goroutine that reads the device

	device netstack.Device
}

// New returns a client, and stops it when the test ends.
func New(tb testing.TB, opt Options) *Client {
	tb.Helper()
	if opt.MTU == 0 {
		opt.MTU = DefaultMTU
	}
	theirs, ours, raw := packetPair(tb)
	link, err := tunlink.New(tunlink.Config{FD: ours, MTU: opt.MTU, VnetHdr: !opt.Plain, TSO: !opt.Plain})
	if err != nil {
		tb.Fatal(err)
	}
	c := &Client{
		tb: tb, link: &tap{Endpoint: link, icmp: make(chan Message, 1024)}, raw: raw,
		device: netstack.Device{FD: theirs, MTU: opt.MTU, VnetHdr: !opt.Plain, TSO: !opt.Plain},
	}
	c.net = newKernel(tb, c.link)
	ctx, cancel := context.WithCancel(tb.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = link.Run(ctx) }) // ends too when the stack under test closes its end
	c.stop = func() {
		cancel()
		wg.Wait()
	}
	tb.Cleanup(func() {
		c.stop()
		c.net.Destroy()
		_ = link.Shutdown()
		closeDescriptor(raw)
	})
	return c
}

// newKernel returns a stack with the client's addresses.
func newKernel(tb testing.TB, link stack.LinkEndpoint) *stack.Stack {
	tb.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	check := func(err tcpip.Error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 4 << 20, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	noRACK := tcpip.TCPRecovery(0) // on a hop of microseconds it probes for what is not lost, and shrinks packets
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &noRACK))
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &receive))
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &send))
	check(s.CreateNIC(nicID, link))
	for proto, a := range map[tcpip.NetworkProtocolNumber]netip.Addr{ipv4.ProtocolNumber: Addr4, ipv6.ProtocolNumber: Addr6} {
		check(s.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}))
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return s
}

// Device returns the end of the device that is for the stack under test, which
// has to take it over.
func (c *Client) Device() netstack.Device { return c.device }

// Link returns the counts of the client's end.
func (c *Client) Link() tunlink.Stats { return c.link.Stats() }

// Retransmits returns how many segments the client had to send again: a SYN
// that was not answered, for one.
func (c *Client) Retransmits() uint64 { return c.net.Stats().TCP.Retransmits.Value() }

// A Conn is a client's TCP connection.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Abort resets the connection.
func (c *Conn) Abort() { c.ep.Abort() }

// DialTCP connects to dst. The error of a connection that was refused is
// [ErrRefused].
func (c *Client) DialTCP(ctx context.Context, dst netip.AddrPort) (*Conn, error) {
	return c.DialTCPFrom(ctx, netip.AddrPort{}, dst)
}

var (
	// ErrRefused says that the answer to a SYN was a reset.
	ErrRefused = errors.New("connection refused")
	// ErrPortInUse says that the client itself has not done with the port yet.
	ErrPortInUse = errors.New("port in use")
)

// DialTCPFrom connects from an address of its own to dst.
func (c *Client) DialTCPFrom(ctx context.Context, src, dst netip.AddrPort) (*Conn, error) {
	queue := new(waiter.Queue)
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	ep, err := c.net.NewEndpoint(tcp.ProtocolNumber, network(dst.Addr()), queue)
	if err != nil {
		return nil, errors.New(err.String())
	}
	if src.IsValid() {
		ep.SocketOptions().SetReuseAddress(true)
		if err := ep.Bind(fullAddress(src)); err != nil {
			ep.Close()
			return nil, fmt.Errorf("bind %v: %s", src, err)
		}
	}
	if err = ep.Connect(fullAddress(dst)); isStarted(err) {
		select {
		case <-ready:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return nil, context.Cause(ctx)
		}
	}
	switch err.(type) {
	case nil:
		return &Conn{TCPConn: gonet.NewTCPConn(queue, ep), ep: ep}, nil
	case *tcpip.ErrConnectionRefused:
		ep.Close()
		return nil, ErrRefused
	case *tcpip.ErrBadLocalAddress, *tcpip.ErrPortInUse:
		ep.Close()
		return nil, ErrPortInUse
	}
	ep.Close()
	return nil, fmt.Errorf("connect %v: %s", dst, err)
}

// A UDPConn is a client's UDP socket that is connected to one address.
type UDPConn struct {
	*gonet.UDPConn
	ep      tcpip.Endpoint
	refused chan struct{} // gets a token for each error
}

// DialUDP returns a UDP socket that is connected to dst.
func (c *Client) DialUDP(dst netip.AddrPort) (*UDPConn, error) {
	queue := new(waiter.Queue)
	ep, err := c.net.NewEndpoint(udp.ProtocolNumber, network(dst.Addr()), queue)
	if err != nil {
		return nil, errors.New(err.String())
	}
	if err := ep.Connect(fullAddress(dst)); err != nil {
		ep.Close()
		return nil, errors.New(err.String())
	}
	entry, refused := waiter.NewChannelEntry(waiter.EventErr)
	queue.EventRegister(&entry)
	return &UDPConn{UDPConn: gonet.NewUDPConn(queue, ep), ep: ep, refused: refused}, nil
}

// WaitRefused waits until a port unreachable makes a later call fail.
func (c *UDPConn) WaitRefused(ctx context.Context) error {
	select {
	case <-c.refused:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, ok := c.ep.SocketOptions().GetLastError().(*tcpip.ErrConnectionRefused); !ok {
		return errors.New("another error than refused")
	}
	return nil
}

func isStarted(err tcpip.Error) bool {
	_, ok := err.(*tcpip.ErrConnectStarted)
	return ok
}

func network(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// Unplug takes the device away from the stack under test.
func (c *Client) Unplug() {
	c.stop()
	_ = c.link.Shutdown()
	hangUp(c.raw)
}
