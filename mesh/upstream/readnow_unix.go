// SPDX-License-Identifier: Apache-2.0

//go:build unix

package upstream

import (
	"io"
	"os"
	"syscall"
)

// recv is called by the runtime, and says that it need not be called again.
func (i *instant) recv(fd uintptr) bool {
	n, err := syscall.Read(int(fd), i.b)
	switch {
	case err == syscall.EAGAIN, err == syscall.EINTR:
		i.n, i.err = 0, errNothing
	case err != nil:
		i.n, i.err = 0, os.NewSyscallError("read", err)
	case n == 0:
		i.n, i.err = 0, io.EOF
	default:
		i.n, i.err = n, nil
	}
	return true
}
