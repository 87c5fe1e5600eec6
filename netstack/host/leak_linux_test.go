// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"errors"
	"math/bits"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A tap sees what arrives at a device.
type tap int

func openTap(t *testing.T, device string) tap {
	t.Helper()
	index, err := deviceIndex(device)
	if err != nil {
		t.Fatal(err)
	}
	all := bits.ReverseBytes16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFD(t, fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		t.Fatal(err)
	}
	return tap(fd)
}

// count returns how many packets to the address have come since it was last asked.
func (p tap) count(t *testing.T, to netip.Addr) (n int) {
	t.Helper()
	b := make([]byte, 65536)
	for {
		size, _, err := unix.Recvfrom(int(p), b, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n
		case err != nil:
			t.Fatal(err)
		case size >= 20 && b[0]>>4 == 4 && netip.AddrFrom4([4]byte(b[16:20])) == to:
			n++
		}
	}
}

// TestNothingLeavesAfterKill sends packets to the mesh without a pause, through the
// death of a session by SIGKILL, the time without any, and the start of the next.
func TestNothingLeavesAfterKill(t *testing.T) {
	ownHost(t, "")
	uplink := openTap(t, "up0p")
	dir := t.TempDir()
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	try := func() { // as an application that knows the address already
		d := Dialer{}
		if c, err := d.DialContext(t.Context(), "udp", netip.AddrPortFrom(vip4, 9).String()); err == nil {
			_, _ = c.Write([]byte("secret"))
			c.Close()
		}
	}
	until := func(done <-chan struct{}) {
		for {
			select {
			case <-done:
				return
			default:
				try()
			}
		}
	}
	start := func(wait func(<-chan struct{})) *exec.Cmd {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "mini-up", filepath.Join(dir, "state"), resolv, "0", "hold")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready := make(chan struct{})
		go func() {
			defer close(ready)
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
				t.Errorf("a session says %q, %v", line, err)
			}
		}()
		wait(ready)
		return cmd
	}
	kill := func(cmd *exec.Cmd) {
		t.Helper()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		go func() { defer close(gone); _ = cmd.Wait() }()
		until(gone)
		for range 100 {
			try()
		}
	}
	kill(start(func(ready <-chan struct{}) { <-ready })) // before, they were anybody's
	kill(start(until))
	if n := uplink.count(t, vip4); n != 0 {
		t.Errorf("%d packets left by the uplink", n)
	}
	if _, err := CleanUp(CleanUpConfig{Dir: filepath.Join(dir, "state"), Name: "test"}); err != nil {
		t.Error(err)
	}
	try()
	for uplink.count(t, vip4) == 0 { // else the tap would see nothing at all
	}
}
