// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// The addresses of a private network. 192.0.0.0/29 is reserved to a host's own
// use (RFC 7335), so it hides no LAN, pod range or range of another tool. The
// IPv6 address is a ULA because then, by RFC 6724, glibc, Go and Java prefer
// IPv4 for a name that has both, as most hosts do.
var (
	ResolverAddr     = netip.AddrFrom4([4]byte{192, 0, 0, 1})
	DeviceAddr       = netip.AddrFrom4([4]byte{192, 0, 0, 2})
	HostLoopbackAddr = netip.AddrFrom4([4]byte{192, 0, 0, 3})
	DeviceAddr6      = netip.MustParseAddr("fd6e:6173:7074::2")
)

// HostLoopbackName is the name that programs use for [HostLoopbackAddr].
const HostLoopbackName = "host.nasp-tun.internal"

// DefaultMTU is that of ordinary Ethernet: with segmentation offload a larger
// one gains nothing, and path MTU discovery of QUIC and the like stays true.
const DefaultMTU = 1500

// deviceName is that of the TUN. Each network namespace has its own.
const deviceName = "nasp0"

// maxHostPorts bounds ExecConfig.HostPorts: one message passes at most 253
// descriptors (SCM_MAX_FD), and nobody lists so many by hand.
const maxHostPorts = 64

// Exit statuses of our own, as env(1), timeout(1) and docker-run(1) have them.
const (
	ExitSetup         = 125 // the private world could not be made
	ExitNotExecutable = 126 // the program was found but cannot be run
	ExitNotFound      = 127 // the program was not found
)

// An ExecConfig says what to run, and in what world.
type ExecConfig struct {
	Args []string // the program, looked up in the PATH of Env as execvp does, and its arguments
	Env  []string // the program's environment, passed on byte by byte

	User      string     // run as this user, by name or number; needs root. Empty: as the caller
	HostPorts []uint16   // ports of the host's 127.0.0.1 that appear on the program's too
	Linger    bool       // Wait for processes that the program leaves behind
	MTU       int        // 0: DefaultMTU
	IPv6      bool       // the host reaches IPv6 now: see Exec.SetIPv6
	Resolv    ResolvConf // the host's: search list, options and loopback servers are taken over

	Logger *slog.Logger // nil: none
}

// A Device is a TUN whose packets the caller now carries.
type Device struct {
	FD      int // nonblocking
	MTU     int
	VnetHdr bool // each packet has a virtio_net_hdr of 10 bytes
	TSO     bool // packets may be TCP segments up to 64 KiB, both ways
}

// A HostPort is a listener inside the private network that stands for a
// port of the host's own loopback.
type HostPort struct {
	Port     uint16
	Listener net.Listener
}

// stageExec is the last stage, in which the program is to run.
const stageExec = "exec"

// An ExecError says why the program does not run.
type ExecError struct {
	Stage string // what was being done: "namespaces", "mounts", "tun", "network", "user", "exec", …
	Code  int    // exit status of our own: ExitSetup, ExitNotExecutable or ExitNotFound
	Hint  string // what the user can do about it; may be empty, may have several lines
	Err   error
}

func (e *ExecError) Error() string {
	if e.Stage == stageExec {
		return e.Err.Error() // which names the program, where there is one
	}
	return fmt.Sprintf("%s: %v", e.Stage, e.Err)
}

// Unwrap returns the cause.
func (e *ExecError) Unwrap() error { return e.Err }

// Interrupted is the error of [StartExec] and [Exec.Start] when a signal ended
// the attempt. Nothing need be printed: the caller exits as interrupted.
type Interrupted struct{ Signal syscall.Signal }

func (e *Interrupted) Error() string { return "interrupted: " + e.Signal.String() }

// Status returns the status to exit with.
func (e *Interrupted) Status() ExitStatus { return ExitStatus{Signal: e.Signal} }

// An ExitStatus says how a program ended.
type ExitStatus struct {
	Code    int            // exit status, if Signal is 0
	Signal  syscall.Signal // that killed it
	Orphans int            // processes that it left behind, now without network
}

// ShellCode returns the status as a shell shows it: 128+n for signal n.
func (s ExitStatus) ShellCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

// String returns the status in words.
func (s ExitStatus) String() string {
	if s.Signal != 0 {
		return "killed by signal " + strconv.Itoa(int(s.Signal))
	}
	return "exit status " + strconv.Itoa(s.Code)
}
