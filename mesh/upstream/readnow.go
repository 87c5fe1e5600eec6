// SPDX-License-Identifier: Apache-2.0

package upstream

import "syscall"

// ReadNow reads what has arrived already and never waits: 0 bytes and no error
// if that is nothing. A TLS record is read whole or not at all. It belongs to
// the goroutine that calls Read.
//
// A TLS session gives out one record of 16 KiB at most at a time. Whoever
// passes its data on in larger pieces, as into a tunnel, gathers them so.
func (c *Conn) ReadNow(b []byte) (int, error) {
	if c.wire == nil || len(b) == 0 {
		return 0, nil
	}
	if c.instant == nil {
		c.instant = newInstant(c.socket)
	}
	c.wire.now = c.instant
	n, err := c.Read(b)
	c.wire.now = nil
	if err == errNothing {
		err = nil
	}
	return n, err
}

// errNothing is what a read gets that would have to wait. TLS takes it for
// passing, since it calls itself temporary, and goes on at the next read.
var errNothing error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return false }
func (nothing) Temporary() bool { return true }

// An instant reads a socket without waiting. Its fields are those of one read:
// a closure made each time would have to be allocated.
type instant struct {
	raw syscall.RawConn // nil: never anything to read
	b   []byte
	n   int
	err error
	f   func(fd uintptr) bool
}

func newInstant(socket any) *instant {
	i := &instant{}
	if s, ok := socket.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			i.raw = raw
		}
	}
	i.f = i.recv
	return i
}

func (i *instant) read(b []byte) (int, error) {
	if i.raw == nil {
		return 0, errNothing
	}
	i.b = b
	err := i.raw.Read(i.f)
	i.b = nil
	if err != nil {
		return 0, err
	}
	return i.n, i.err
}
