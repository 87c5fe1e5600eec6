// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"errors"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

var (
	// ErrDecided is returned by Accept for a flow that was accepted or
	// rejected before.
	ErrDecided = errors.New("flow is decided already")

	// ErrClientGone is returned by Accept for a connection whose client gave
	// up before.
	ErrClientGone = errors.New("client gave up before the connection was accepted")

	// errWouldBlock never leaves the package.
	errWouldBlock = errors.New("would block")
)

// toError returns the error that a kernel socket would give in place of err.
func toError(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrNotConnected:
		return syscall.ENOTCONN
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrMessageTooLong:
		return syscall.EMSGSIZE
	case *tcpip.ErrNoBufferSpace, *tcpip.ErrWouldBlock:
		return syscall.ENOBUFS
	}
	return errors.New(err.String())
}
