// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
)

// ErrNotSupported is returned where the operating system has no network
// namespaces to put a program into.
var ErrNotSupported = fmt.Errorf("%s has no network namespaces: %w", runtime.GOOS, errors.ErrUnsupported)

// Exec is a program in a private network. There is none on this system.
type Exec struct{}

// Stage2 has nothing to do on this system.
func Stage2([]string) bool { return false }

// StartExec fails: a private network needs Linux.
func StartExec(context.Context, ExecConfig) (*Exec, error) {
	return nil, &ExecError{Stage: "namespaces", Code: ExitSetup, Hint: "run it on Linux, or in a Linux virtual machine or container", Err: ErrNotSupported}
}

// Device returns no device.
func (e *Exec) Device() Device { return Device{FD: -1} }

// Stubs returns no sockets.
func (e *Exec) Stubs() ([]net.PacketConn, []net.Listener) { return nil, nil }

// HostPorts returns no listeners.
func (e *Exec) HostPorts() []HostPort { return nil }

// Warnings returns nothing.
func (e *Exec) Warnings() []string { return nil }

// Rootless reports false.
func (e *Exec) Rootless() bool { return false }

// PID returns 0.
func (e *Exec) PID() int { return 0 }

// Start fails.
func (e *Exec) Start(context.Context) error { return ErrNotSupported }

// Done returns nil.
func (e *Exec) Done() <-chan struct{} { return nil }

// Wait returns the status of a set-up that failed.
func (e *Exec) Wait() ExitStatus { return ExitStatus{Code: ExitSetup} }

// Signal fails.
func (e *Exec) Signal(syscall.Signal) error { return ErrNotSupported }

// SetIPv6 fails.
func (e *Exec) SetIPv6(bool) error { return ErrNotSupported }

// SetMesh6 fails.
func (e *Exec) SetMesh6([]netip.Addr) error { return ErrNotSupported }

// Close does nothing.
func (e *Exec) Close() error { return nil }

// Exit ends this process with the status as a shell would show it.
func (s ExitStatus) Exit() { os.Exit(s.ShellCode()) }

// HasIPv6 reports whether the host has a route to the IPv6 Internet. It is not
// known on this system, which is taken for no.
func (d *Dialer) HasIPv6() bool { return false }

// WatchIPv6 waits for ctx: route changes are not watched on this system.
func (d *Dialer) WatchIPv6(ctx context.Context, _ func(bool)) error {
	<-ctx.Done()
	return nil
}

// markSocket fails: socket marks are Linux's.
func markSocket(syscall.RawConn, uint32) error { return ErrNotSupported }

func tuneTCP(syscall.RawConn) error { return nil }
