// SPDX-License-Identifier: Apache-2.0

package tunlink_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/refs"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
	"github.com/nasp-tun/nasp-tun/netstack/tunlink"
)

func TestMain(m *testing.M) {
	refs.SetLeakMode(refs.LeaksPanic)
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
		refs.DoLeakCheck()
	}
	os.Exit(code)
}

// A device is the far end of an endpoint, and what the endpoint delivered.
type device struct {
	t    testing.TB
	e    *tunlink.Endpoint
	fd   int
	vnet bool

	packets chan packet
	syns    chan stack.TransportEndpointID
}

type packet struct {
	proto tcpip.NetworkProtocolNumber
	bytes []byte
	views []int // capacity of each
}

// newDevice runs an endpoint whose packets it keeps.
func newDevice(t testing.TB, vnet bool) *device {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, fd: fds[1], vnet: vnet, packets: make(chan packet, 64), syns: make(chan stack.TransportEndpointID, 64)}
	d.e, err = tunlink.New(tunlink.Config{
		FD: fds[0], MTU: 1500, VnetHdr: vnet, TSO: vnet,
		OnSYN: func(_ tcpip.NetworkProtocolNumber, id stack.TransportEndpointID) { d.syns <- id },
	})
	if err != nil {
		t.Fatal(err)
	}
	d.e.Attach(d)
	ended := make(chan error, 1)
	go func() { ended <- d.e.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil { // the test's context has ended by now
			t.Errorf("Run: %v", err)
		}
		if err := d.e.Shutdown(); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		unix.Close(d.fd)
	})
	return d
}

func (d *device) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	p := packet{proto: proto}
	views, _ := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		p.bytes = append(p.bytes, v.AsSlice()...)
		p.views = append(p.views, v.Capacity())
	}
	d.packets <- p
}

func (d *device) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// send writes a packet behind a vnet header of these flags and this GSO type.
func (d *device) send(flags, gso byte, p []byte) {
	d.t.Helper()
	if d.vnet {
		p = append([]byte{flags, gso, 0, 0, 0, 0, 0, 0, 0, 0}, p...)
	}
	if err := unix.Send(d.fd, p, 0); err != nil {
		d.t.Fatal(err)
	}
}

var (
	client4  = netip.MustParseAddrPort("192.0.2.1:40000")
	client6  = netip.MustParseAddrPort("[2001:db8::1]:40000")
	service4 = netip.MustParseAddrPort("203.0.113.7:80")
	service6 = netip.MustParseAddrPort("[2001:db8:7::7]:80")
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// Packets come out as they went in, the headers apart from the payload, and
// what is small takes little.
func TestReceive(t *testing.T) {
	for _, vnet := range []bool{true, false} {
		d := newDevice(t, vnet)
		for _, size := range []int{0, 1, 11, 12, 13, 31, 32, 33, 100, 1448, 4095, 4096, 4128, 4129, 30000, 65000} {
			for _, s := range []netstacktest.Segment{
				{Src: client4, Dst: service4, ACK: true, Payload: random(size)},
				{Src: client6, Dst: service6, ACK: true, Payload: random(size)},
			} {
				sent := s.Packet()
				d.send(0, 0, sent)
				got := <-d.packets
				if !bytes.Equal(got.bytes, sent) {
					t.Fatalf("vnet=%v %v, payload %d: %d bytes came, changed", vnet, s.Src, size, len(got.bytes))
				}
				if want := header.IPVersion(sent) == 6; (got.proto == header.IPv6ProtocolNumber) != want {
					t.Errorf("delivered as protocol %#x", got.proto)
				}
				if got.views[0] > 128 {
					t.Errorf("the headers are in a view of %d bytes", got.views[0])
				}
				total := 0
				for _, c := range got.views {
					total += c
				}
				if size <= 4096 && total > 2*len(sent)+128 {
					t.Errorf("%d bytes take %d", len(sent), total)
				}
			}
		}
		if got := d.e.Stats(); got.RxMalformed+got.RxChecksum+got.RxOffload != 0 {
			t.Errorf("stats %+v", got)
		}
	}
}

// A packet that nothing vouches for has to have the right checksum; one that
// the kernel marked is believed. The device tells by its flags.
func TestChecksum(t *testing.T) {
	const needsCsum, dataValid = 1, 2
	flip := func(p []byte, at int) []byte {
		p = bytes.Clone(p)
		p[at] ^= 0x10
		return p
	}
	segment4 := netstacktest.Segment{Src: client4, Dst: service4, ACK: true, Payload: random(777)}.Packet()
	segment6 := netstacktest.Segment{Src: client6, Dst: service6, ACK: true, Payload: random(1001)}.Packet()
	datagram4 := netstacktest.Datagram(client4, service4, random(501))
	datagram6 := netstacktest.Datagram(client6, service6, random(20))
	unsummed := bytes.Clone(datagram4)
	unsummed[20+6], unsummed[20+7] = 0, 0
	unsummed6 := bytes.Clone(datagram6)
	unsummed6[40+6], unsummed6[40+7] = 0, 0
	padded := append(bytes.Clone(segment4), random(7)...)

	for _, tt := range []struct {
		name  string
		flags byte
		p     []byte
		drop  bool
	}{
		{"TCP v4", 0, segment4, false},
		{"TCP v6", 0, segment6, false},
		{"UDP v4", 0, datagram4, false},
		{"UDP v6", 0, datagram6, false},
		{"UDP v4 without checksum", 0, unsummed, false},
		{"UDP v6 without checksum", 0, unsummed6, true},
		{"padding is not summed", 0, padded, false},
		{"IPv4 header", 0, flip(segment4, 1), true},
		{"TCP v4 header", 0, flip(segment4, 24), true},
		{"TCP v4 payload", 0, flip(segment4, len(segment4)-1), true},
		{"TCP v4 byte where header and payload part", 0, flip(segment4, 52), true},
		{"TCP v6 payload", 0, flip(segment6, len(segment6)-1), true},
		{"TCP v6 address", 0, flip(segment6, 23), true},
		{"UDP v4 payload", 0, flip(datagram4, len(datagram4)-1), true},
		{"UDP v6 payload", 0, flip(datagram6, 50), true},
		{"wrong, but to be computed by hardware", needsCsum, flip(segment4, 60), false},
		{"wrong, but verified by the kernel", dataValid, flip(segment6, 60), false},
		{"cut off", 0, segment4[:len(segment4)-1], true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDevice(t, true)
			d.send(tt.flags, 0, tt.p)
			good := netstacktest.Segment{Src: client4, Dst: service4, ACK: true, Seq: 99}.Packet()
			d.send(0, 0, good)
			first := <-d.packets
			if dropped := bytes.Equal(first.bytes, good); dropped != tt.drop {
				t.Errorf("dropped %v, want %v", dropped, tt.drop)
			}
			if got := d.e.Stats().RxChecksum; (got == 1) != tt.drop {
				t.Errorf("%d checksum errors", got)
			}
		})
	}
}

// What is no IP packet, or comes with an offload that was not asked for, is
// dropped and counted.
func TestDropped(t *testing.T) {
	const gsoUDP, gsoUDPL4, gsoTCPv4, gsoECN = 3, 5, 1, 0x80
	good := netstacktest.Segment{Src: client4, Dst: service4, ACK: true}.Packet()
	d := newDevice(t, true)
	d.send(0, 0, nil)
	d.send(0, 0, good[:19])
	d.send(0, 0, append([]byte{0x60}, random(38)...))
	d.send(0, 0, append([]byte{0x70}, random(38)...))
	d.send(1, gsoUDP, good)
	d.send(1, gsoUDPL4, good)
	if err := unix.Send(d.fd, []byte("short"), 0); err != nil {
		t.Fatal(err)
	}
	d.send(1, gsoTCPv4|gsoECN, good)
	if got := <-d.packets; !bytes.Equal(got.bytes, good) {
		t.Errorf("delivered %x", got.bytes)
	}
	if got := d.e.Stats(); got.RxMalformed != 5 || got.RxOffload != 2 || len(d.packets) != 0 {
		t.Errorf("stats %+v", got)
	}
}

// A connection request is reported before it is delivered, with the client as
// the remote end. Nothing else is.
func TestOnSYN(t *testing.T) {
	d := newDevice(t, true)
	for _, s := range []netstacktest.Segment{
		{Src: client4, Dst: service4, SYN: true, ACK: true},
		{Src: client4, Dst: service4, SYN: true, RST: true},
		{Src: client4, Dst: service4, ACK: true},
		{Src: client4, Dst: service4, SYN: true},
		{Src: client6, Dst: service6, SYN: true},
	} {
		d.send(0, 0, s.Packet())
		<-d.packets
	}
	for _, want := range [][2]netip.AddrPort{{service4, client4}, {service6, client6}} {
		id := <-d.syns
		local, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
		remote, _ := netip.AddrFromSlice(id.RemoteAddress.AsSlice())
		if netip.AddrPortFrom(local, id.LocalPort) != want[0] || netip.AddrPortFrom(remote, id.RemotePort) != want[1] {
			t.Errorf("reported %+v", id)
		}
	}
	if len(d.syns) != 0 {
		t.Errorf("reported also %+v", <-d.syns)
	}
}

// outgoing returns a packet as the stack would build it: reserved room, of
// which the headers take the end, and the payload in chunks.
func outgoing(gso stack.GSO, headers int, payload ...[]byte) *stack.PacketBuffer {
	var b buffer.Buffer
	for _, p := range payload {
		_ = b.Append(buffer.NewViewWithData(p))
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: headers + 30, Payload: b})
	copy(pkt.NetworkHeader().Push(headers), bytes.Repeat([]byte{0x45}, headers))
	pkt.GSOOptions = gso
	return pkt
}

func (d *device) receive() []byte {
	d.t.Helper()
	b := make([]byte, 70000)
	n, err := unix.Read(d.fd, b)
	if err != nil {
		d.t.Fatal(err)
	}
	return b[:n]
}

// Each packet leaves in one write, behind a vnet header that says what the
// kernel has to do with it.
func TestSend(t *testing.T) {
	gso4 := stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: 1448, L3HdrLen: 20, MaxSize: 65535}
	gso6 := stack.GSO{Type: stack.GSOTCPv6, NeedsCsum: true, CsumOffset: 16, MSS: 1428, L3HdrLen: 40, MaxSize: 65535}
	scraps := make([][]byte, 1500)
	for i := range scraps {
		scraps[i] = []byte(strings.Repeat(string(rune('a'+i%26)), 64)) // fills its chunk, so that none are joined
	}
	for _, tt := range []struct {
		name    string
		gso     stack.GSO
		headers int
		payload [][]byte

		flags, gsoType                         byte
		hdrLen, gsoSize, csumStart, csumOffset uint16
	}{
		{"no offload", stack.GSO{}, 28, [][]byte{random(100)}, 0, 0, 0, 0, 0, 0},
		{"no payload", stack.GSO{}, 40, nil, 0, 0, 0, 0, 0, 0},
		{"segmented by gVisor", stack.GSO{Type: stack.GSOGvisor, MSS: 1448}, 52, [][]byte{random(1448)}, 0, 0, 0, 0, 0, 0},
		{"one segment v4", gso4, 52, [][]byte{random(1448)}, 1, 0, 52, 0, 20, 16},
		{"superpacket v4", gso4, 52, [][]byte{random(40000), random(20000)}, 1, 1, 52, 1448, 20, 16},
		{"superpacket v6", gso6, 72, [][]byte{random(1429)}, 1, 4, 72, 1428, 40, 16},
		{"more chunks than one write takes", gso4, 52, scraps[:1000], 1, 1, 52, 1448, 20, 16},
	} {
		for _, vnet := range []bool{true, false} {
			d := newDevice(t, vnet)
			pkt := outgoing(tt.gso, tt.headers, tt.payload...)
			var list stack.PacketBufferList
			list.PushBack(pkt)
			if n, err := d.e.WritePackets(list); n != 1 || err != nil {
				t.Fatalf("%s: wrote %d, %v", tt.name, n, err)
			}
			pkt.DecRef()
			got := d.receive()
			if vnet {
				ne := binary.NativeEndian
				want := []byte{tt.flags, tt.gsoType}
				for _, v := range []uint16{tt.hdrLen, tt.gsoSize, tt.csumStart, tt.csumOffset} {
					want = ne.AppendUint16(want, v)
				}
				if !bytes.Equal(got[:10], want) {
					t.Errorf("%s: vnet header %v, want %v", tt.name, got[:10], want)
				}
				got = got[10:]
			}
			want := append(bytes.Repeat([]byte{0x45}, tt.headers), bytes.Join(tt.payload, nil)...)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d, or changed", tt.name, len(got), len(want))
			}
			if s := d.e.Stats(); s.TxPackets != 1 || s.TxBytes != uint64(len(want)) {
				t.Errorf("%s: stats %+v", tt.name, s)
			}
		}
	}
}

// A device that takes nothing costs the packet and not the writer, and a
// closed one is an error.
func TestSendFails(t *testing.T) {
	d := newDevice(t, true)
	var sent int
	for d.e.Stats().TxNoBuffer == 0 {
		pkt := outgoing(stack.GSO{}, 28, random(60000))
		var list stack.PacketBufferList
		list.PushBack(pkt)
		d.e.WritePackets(list)
		pkt.DecRef()
		if sent++; sent > 10000 {
			t.Fatal("the queue has no end")
		}
	}
	if err := d.e.Shutdown(); err != nil {
		t.Fatal(err)
	}
	pkt := outgoing(stack.GSO{}, 28)
	defer pkt.DecRef()
	var list stack.PacketBufferList
	list.PushBack(pkt)
	if n, err := d.e.WritePackets(list); n != 0 || err == nil {
		t.Errorf("write after Shutdown: %d, %v", n, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []tunlink.Config{
		{MTU: 1279}, {MTU: 65536}, {MTU: 1500, TSO: true}, {MTU: 1500, FD: -1},
	} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.FD == 0 {
			cfg.FD = fds[0]
		} else {
			unix.Close(fds[0])
		}
		if _, err := tunlink.New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
		// The descriptor is closed: the other end reads its end.
		if n, err := unix.Read(fds[1], make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("%+v: descriptor still open: %d, %v", cfg, n, err)
		}
		unix.Close(fds[1])
	}
}
