// SPDX-License-Identifier: Apache-2.0

//go:build unix

package upstream

import "syscall"

// A peek looks at a socket without reading from it. It lives as long as its
// connection, so that a look costs one system call and no memory.
type peek struct {
	raw  syscall.RawConn
	look func(fd uintptr)
	buf  [1]byte
	ok   bool
}

func newPeek(raw syscall.RawConn) *peek {
	p := &peek{raw: raw}
	p.look = func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), p.buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		p.ok = err == syscall.EAGAIN || err == syscall.EINTR
	}
	return p
}

// quiet reports whether the socket is open and has nothing to read. No other
// goroutine may be reading.
func (p *peek) quiet() bool {
	p.ok = false
	return p.raw.Control(p.look) == nil && p.ok
}
