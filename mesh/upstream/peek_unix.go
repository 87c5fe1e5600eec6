// SPDX-License-Identifier: Apache-2.0

//go:build unix

package upstream

import "syscall"

// quiet reports whether a socket is open and has nothing to read, at the cost
// of one recv. It must be asked while no other goroutine reads.
func quiet(raw syscall.RawConn) bool {
	ok := false
	err := raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ok = err == syscall.EAGAIN || err == syscall.EINTR
	})
	return err == nil && ok
}
