// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nasp-tun/nasp-tun/netstack"
)

// needNamespaces skips a test that needs root, except where skipping is not
// allowed: NASP_TUN_NETNS=require, as CI has it.
func needNamespaces(t testing.TB) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("NASP_TUN_NETNS") == "require":
		t.Fatal("needs root, and NASP_TUN_NETNS=require")
	default:
		t.Skip("needs root")
	}
}

// A kernel is a network namespace with a TUN device to which all its traffic
// goes: the real client, in place of netstacktest's.
type kernel struct {
	t      testing.TB
	do     chan func()
	device netstack.Device
}

// newKernel makes the namespace. Its sockets are made by in, on the thread
// that is in it.
func newKernel(t testing.TB) *kernel {
	t.Helper()
	needNamespaces(t)
	k := &kernel{t: t, do: make(chan func())}
	entered, left := make(chan error), make(chan struct{})
	go func() {
		defer close(left)
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		entered <- err
		if err != nil {
			return
		}
		for f := range k.do {
			f()
		}
	}()
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(k.do)
		<-left
	})
	k.in(k.setUp)
	if t.Failed() {
		t.FailNow()
	}
	return k
}

// in runs f on the thread that is in the namespace.
func (k *kernel) in(f func()) {
	done := make(chan struct{})
	k.do <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (k *kernel) setUp() {
	const mtu = "1500"
	fd, err := openTUN("tun0")
	if err != nil {
		k.t.Errorf("open tun: %v", err)
		return
	}
	k.device = netstack.Device{FD: fd, MTU: 1500, VnetHdr: true, TSO: true}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", "192.0.2.1/24", "dev", "tun0"},
		{"-6", "addr", "add", "2001:db8::1/64", "dev", "tun0", "nodad"},
		{"link", "set", "tun0", "up", "mtu", mtu, "txqueuelen", "1000"},
		{"route", "add", "default", "dev", "tun0"},
		{"-6", "route", "add", "default", "dev", "tun0"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			k.t.Errorf("ip %v: %v: %s", args, err, out)
		}
	}
}

func openTUN(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return fd, errors.Join(
		unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr),
		unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6),
	)
}

// dial connects from inside the namespace.
func (k *kernel) dial(network, address string) (c net.Conn, err error) {
	k.in(func() { c, err = net.Dial(network, address) })
	return c, err
}

func (k *kernel) mustDial(network, address string) net.Conn {
	k.t.Helper()
	c, err := k.dial(network, address)
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// serve runs a Stack on the kernel's device for the length of the test.
func (k *kernel) serve(h handler) *netstack.Stack {
	k.t.Helper()
	s, err := netstack.New(netstack.Config{Device: k.device, Handler: h})
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(k.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	k.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			k.t.Errorf("Run: %v", err)
		}
	})
	return s
}

// A real kernel hands over superpackets, and takes ours.
func TestKernelBulk(t *testing.T) {
	const size = 256 << 20
	for _, address := range []string{"203.0.113.7:80", "[2001:db8:7::7]:80"} {
		t.Run("up "+address, func(t *testing.T) {
			k := newKernel(t)
			done := make(chan int64, 1)
			s := k.serve(handler{tcp: accept(t, func(_ context.Context, c *netstack.TCPConn) {
				n, _ := io.Copy(io.Discard, c)
				done <- n
			})})
			c := k.mustDial("tcp", address)
			write(t, c, size)
			c.Close()
			if n := <-done; n != size {
				t.Errorf("%d bytes arrived", n)
			}
			checkMean(t, s.Stats().Device.RxMean())
			checkDrops(t, s)
		})
		t.Run("down "+address, func(t *testing.T) {
			k := newKernel(t)
			s := k.serve(handler{tcp: accept(t, func(_ context.Context, c *netstack.TCPConn) { write(t, c, size) })})
			c := k.mustDial("tcp", address)
			defer c.Close()
			if n, err := io.Copy(io.Discard, c); n != size || err != nil {
				t.Errorf("%d bytes arrived, %v", n, err)
			}
			checkMean(t, s.Stats().Device.TxMean())
			checkDrops(t, s)
		})
	}
}

func checkDrops(t *testing.T, s *netstack.Stack) {
	t.Helper()
	if d := s.Stats().Device; d.RxMalformed+d.RxChecksum+d.RxOffload+d.TxNoBuffer+d.TxFailed != 0 {
		t.Errorf("drops: %+v", d)
	}
}

// says answers by port in each way there is.
func says(t *testing.T, there map[netip.Addr]bool) handler {
	return handler{
		tcp: func(_ context.Context, f *netstack.TCPFlow) {
			if f.Destination().Port() == 80 {
				f.Reject()
				return
			}
			c, err := f.Accept()
			if err != nil {
				t.Errorf("Accept: %v", err)
				return
			}
			if f.Destination().Port() == 81 {
				c.Read(make([]byte, 1))
				c.Abort()
				return
			}
			io.Copy(c, c)
		},
		udp: func(ctx context.Context, f *netstack.UDPFlow) {
			if f.Destination().Port() == 80 {
				f.Reject()
				return
			}
			echoUDP(t)(ctx, f)
		},
		echo: func(a netip.Addr) bool { return there[a] },
	}
}

// What the stack says is what a program on a real kernel hears.
func TestKernelHears(t *testing.T) {
	k := newKernel(t)
	k.serve(says(t, nil))
	for _, host := range []string{"203.0.113.7", "2001:db8:7::7"} {
		at := func(port string) string { return net.JoinHostPort(host, port) }
		if _, err := k.dial("tcp", at("80")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s, rejected: %v", host, err)
		}
		c := k.mustDial("tcp", at("81"))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s, aborted: %v", host, err)
		}
		c.Close()
		c = k.mustDial("tcp", at("82"))
		c.Write([]byte("half"))
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "half" || err != nil {
			t.Errorf("%s, half-closed: %q, %v", host, b, err)
		}
		c.Close()
		c = k.mustDial("udp", at("80"))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s, UDP rejected: %v", host, err)
		}
		c.Close()
		c = k.mustDial("udp", at("82"))
		for _, size := range []int{1, 1400, 30_000} {
			c.Write(counting(size))
			if n, err := c.Read(make([]byte, 65535)); n != size+3 || err != nil {
				t.Errorf("%s, UDP of %d bytes: %d, %v", host, size, n, err)
			}
		}
		c.Close()
	}
}

func TestKernelPings(t *testing.T) {
	k := newKernel(t)
	k.serve(says(t, map[netip.Addr]bool{service4.Addr(): true, service6.Addr(): true}))
	for _, tt := range []struct {
		network, host string
		request, typ  byte
	}{
		{"ip4:icmp", "203.0.113.7", 8, 0},
		{"ip4:icmp", "203.0.113.8", 8, 3},
		{"ip6:ipv6-icmp", "2001:db8:7::7", 128, 129},
		{"ip6:ipv6-icmp", "2001:db8:7::8", 128, 1},
	} {
		c := k.mustDial(tt.network, tt.host)
		msg := []byte{tt.request, 0, 0, 0, 0, 7, 0, 1}
		if tt.request == 8 {
			msg[2], msg[3] = 0xf7, 0xf7 // ^(0x0800 + 7 + 1); the kernel sums ICMPv6 alone
		}
		c.Write(msg)
		b := make([]byte, 1500)
		n, err := c.Read(b)
		if tt.request == 8 && n > 20 {
			b, n = b[20:], n-20 // a raw IPv4 socket shows the IP header
		}
		if err != nil || n < 8 || b[0] != tt.typ {
			t.Errorf("ping %s: %x, %v", tt.host, b[:n], err)
		}
		c.Close()
	}
}

// A client on a real kernel opens connections for ever at one rate, although
// we close first: no SYN is dropped.
func TestKernelConnections(t *testing.T) {
	n := 20_000
	if testing.Short() {
		n /= 10
	}
	k := newKernel(t)
	s := k.serve(handler{tcp: accept(t, func(_ context.Context, c *netstack.TCPConn) {
		c.CloseWrite()
		io.Copy(io.Discard, c)
	})})
	k.in(func() {
		for i := range n {
			c, err := net.Dial("tcp", "203.0.113.7:80")
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	})
	if got := s.Stats().TCP; got.Accepted != uint64(n) || got.Failed != 0 {
		t.Errorf("stats %+v", got)
	}
}
