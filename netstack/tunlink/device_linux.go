// SPDX-License-Identifier: Apache-2.0

package tunlink

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// writeWait bounds how long a write waits for room. A TUN device never
	// makes a writer wait. Where the descriptor is a socket whose peer is slow,
	// dropping at once would cost the connection its congestion window (one
	// round trip, then seconds of ramp), while waiting without bound could
	// deadlock two stacks that each write from their reader.
	writeWait = 100 * time.Millisecond

	// maxIov is the kernel's limit on the parts of one writev (UIO_MAXIOV).
	maxIov = 1024
)

// A device is the descriptor, registered with the runtime's poller for reads.
// Writes go straight to the descriptor: the poller would serialise them.
type device struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
}

func openDevice(fd int) (device, error) {
	// The descriptor has to be non-blocking before NewFile sees it, else the
	// file is never given to the poller and a read cannot be interrupted.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return device{}, fmt.Errorf("tun: set non-blocking: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tun")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return device{}, fmt.Errorf("tun: %w", err)
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		f.Close()
		return device{}, fmt.Errorf("tun: descriptor cannot be polled: %w", err)
	}
	return device{file: f, raw: raw, fd: fd}, nil
}

func (d *device) interrupt() { _ = d.file.SetReadDeadline(time.Unix(1, 0)) }

func (d *device) close() error { return d.file.Close() }

// readBuffers are the three parts of one read: vnet header, IP and TCP
// headers, payload. Without vnet header the first is left out.
type readBuffers struct {
	iov  [3]unix.Iovec
	skip int

	n    int
	errn syscall.Errno
	call func(fd uintptr) bool
}

func newReadBuffers(vnet, head []byte, vnetHdr bool) *readBuffers {
	r := &readBuffers{}
	setIov(&r.iov[0], vnet)
	setIov(&r.iov[1], head)
	if !vnetHdr {
		r.skip = 1
	}
	r.call = r.readv // once, so that a read allocates nothing
	return r
}

func (r *readBuffers) setBody(b []byte) { setIov(&r.iov[2], b) }

func (r *readBuffers) readv(fd uintptr) bool {
	iov := r.iov[r.skip:]
	n, _, errn := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	r.n, r.errn = int(n), errn
	return errn != unix.EAGAIN && errn != unix.EINTR
}

// read waits for a packet and returns its length, vnet header included.
func (d *device) read(r *readBuffers) (int, error) {
	if err := d.raw.Read(r.call); err != nil {
		return 0, err
	}
	if r.errn != 0 {
		return 0, r.errn
	}
	return r.n, nil
}

// writeBuffers are the parts of one packet to be written.
type writeBuffers struct {
	iov []unix.Iovec
}

func (w *writeBuffers) add(b []byte) {
	w.iov = append(w.iov, unix.Iovec{})
	setIov(&w.iov[len(w.iov)-1], b)
}

// reset forgets the parts, so that none of them is kept alive.
func (w *writeBuffers) reset() {
	clear(w.iov)
	w.iov = w.iov[:0]
}

func (w *writeBuffers) full() bool { return len(w.iov) >= maxIov }

// write sends one packet.
func (d *device) write(w *writeBuffers) error {
	for waited := false; ; waited = true {
		_, _, errn := unix.Syscall(unix.SYS_WRITEV, uintptr(d.fd), uintptr(unsafe.Pointer(&w.iov[0])), uintptr(len(w.iov)))
		switch {
		case errn == 0:
			return nil
		case errn == unix.EINTR:
		case errn == unix.EAGAIN && !waited:
			d.waitWritable()
		default:
			return errn
		}
	}
}

func (d *device) waitWritable() {
	p := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLOUT}}
	_, _ = unix.Poll(p, int(writeWait.Milliseconds()))
}

func setIov(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// queueFull tells a packet that found no room from one that was refused.
func queueFull(err error) bool { return err == unix.EAGAIN || err == unix.ENOBUFS }
