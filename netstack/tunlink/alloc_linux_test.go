// SPDX-License-Identifier: Apache-2.0

package tunlink_test

import (
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/refs"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
	"github.com/nasp-tun/nasp-tun/netstack/tunlink"
)

// sink tells that a packet was delivered.
type sink chan struct{}

func (s sink) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) { s <- struct{}{} }
func (s sink) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer)    {}

// A packet costs no allocation in either direction, large or small: packets,
// views and chunks come from pools. (A collection in between empties the
// pools, hence less than one and not none.)
func TestPacketAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	refs.SetLeakMode(refs.NoLeakChecking) // it allocates
	defer refs.SetLeakMode(refs.LeaksPanic)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	e, err := tunlink.New(tunlink.Config{FD: fds[0], MTU: 1500, VnetHdr: true, TSO: true, OnSYN: func(tcpip.NetworkProtocolNumber, stack.TransportEndpointID) {}})
	if err != nil {
		t.Fatal(err)
	}
	delivered := make(sink)
	e.Attach(delivered)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(t.Context()) }()
	defer func() {
		e.Interrupt()
		<-ended
		e.Shutdown()
	}()

	for _, size := range []int{0, 1000, 60000} {
		p := append(make([]byte, netstacktest.VnetHdrLen), netstacktest.Segment{Src: client4, Dst: service4, ACK: true, Payload: random(size)}.Packet()...)
		read := testing.AllocsPerRun(200, func() {
			if err := unix.Send(fds[1], p, 0); err != nil {
				t.Error(err)
			}
			<-delivered
		})
		if read >= 1 {
			t.Errorf("reading a packet of %d bytes allocates %v times", size, read)
		}

		pkt := outgoing(stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1448}, 52, random(size/2), random(size/2))
		var list stack.PacketBufferList
		list.PushBack(pkt)
		buf := make([]byte, 70000)
		written := testing.AllocsPerRun(200, func() {
			e.WritePackets(list)
			unix.Read(fds[1], buf)
		})
		pkt.DecRef()
		if written >= 1 {
			t.Errorf("writing a packet of %d bytes allocates %v times", size, written)
		}
	}
}
