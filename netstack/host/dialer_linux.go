// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentLowat is TCP_NOTSENT_LOWAT: how much may wait unsent in the kernel
// before a write blocks. More only adds delay; the buffer for what is in flight
// is autotuned beside it.
const unsentLowat = 256 << 10

func markSocket(c syscall.RawConn, mark uint32) error {
	return onSocket(c, "SO_MARK", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	})
}

func tuneTCP(c syscall.RawConn) error {
	return onSocket(c, "TCP_NOTSENT_LOWAT", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLowat)
	})
}

func onSocket(c syscall.RawConn, option string, set func(fd int) error) error {
	var err error
	if ctl := c.Control(func(fd uintptr) { err = set(int(fd)) }); ctl != nil {
		return ctl
	}
	return os.NewSyscallError("setsockopt "+option, err)
}
