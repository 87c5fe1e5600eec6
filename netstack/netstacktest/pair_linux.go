// SPDX-License-Identifier: Apache-2.0

package netstacktest

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// queueBytes is the room of the pair in each direction: a window of data in
// superpackets, so that no packet is lost for want of it where the limit can
// be raised (it can by root).
const queueBytes = 16 << 20

// packetPair returns the two ends of a device, and a second descriptor to the
// client's.
func packetPair(tb testing.TB) (theirs, ours, raw int) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	for _, fd := range fds {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, queueBytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, queueBytes)
		}
	}
	raw, err = unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return fds[0], fds[1], raw
}

func closeDescriptor(fd int) { _ = unix.Close(fd) }

// injectWait is how long Inject waits for room before it calls the stack under
// test stuck.
const injectWait = 20 * time.Second

// Inject sends bytes as they are to the stack under test: the vnet header, if
// the device has one, and a packet. It waits for room.
func (c *Client) Inject(p []byte) error {
	for {
		err := unix.Send(c.raw, p, 0)
		if err != unix.EAGAIN {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.raw), Events: unix.POLLOUT}}, int(injectWait.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return err
		}
		if n == 0 {
			return errors.New("the stack under test does not read")
		}
	}
}

// hangUp makes the other end read an end, although descriptors are open.
func hangUp(fd int) { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }
