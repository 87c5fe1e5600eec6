// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// stage2Verb is the hidden verb by which the program starts itself inside.
const stage2Verb = "__exec"

// maxMessage bounds one message on the control socket. A plan holds a resolv.conf (of
// maxResolvConf, in base64), two short lists and numbers; arguments and environment
// do not travel here but as stage 2's own, byte by byte and under the kernel's limit.
const maxMessage = 128 << 10

// goMessage tells stage 2 to become the program.
const goMessage = "go"

// A plan is what stage 2 is told.
type plan struct {
	Parent     int          `json:"parent"` // pid, to notice that it died before PDEATHSIG was set
	Name       string       `json:"name"`
	MTU        int          `json:"mtu"`
	IPv6       bool         `json:"ipv6"`
	ResolvConf []byte       `json:"resolvConf"`
	Stubs      []netip.Addr `json:"stubs"`
	HostPorts  []uint16     `json:"hostPorts"`
	Login      *login       `json:"login,omitempty"`
	KeepCaps   bool         `json:"keepCaps"` // the program is root: capabilities stay, as under sudo
}

// A login is the user that stage 2 becomes.
type login struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups"`
}

// A report is what stage 2 answers: that all is made, with the descriptors
// beside it, or in which stage it failed.
type report struct {
	Stage string        `json:"stage,omitempty"` // failed here
	Err   string        `json:"err,omitempty"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Code  int           `json:"code,omitempty"`

	Device   Device   `json:"device"`  // FD is in FDs[0]
	Index    int      `json:"index"`   // of the device
	HasIPv6  bool     `json:"hasIPv6"` // the kernel has IPv6
	NetNS    nsID     `json:"netns"`
	UDP, TCP int      // how many stub sockets of each kind follow the TUN and the rtnetlink socket
	Warnings []string `json:"warnings,omitempty"`
}

// stageError is an error of stage 2 as it arrives in the parent.
type stageError struct {
	text  string
	errno syscall.Errno
}

func (e *stageError) Error() string { return e.text }

// Unwrap returns the error number, so that errors.Is works across processes.
func (e *stageError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// failure makes a report of err.
func failure(stage string, code int, err error) *report {
	r := &report{Stage: stage, Err: err.Error(), Code: code}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		r.Errno = errno
	}
	return r
}

// sendReport sends r with fds from stage 2, on its blocking socket.
func sendReport(sock int, r *report, fds []int) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(sock, text, oob, nil, unix.MSG_NOSIGNAL)
}

// receiveMessage reads one message in stage 2. io.EOF says that the parent is gone.
func receiveMessage(sock int) ([]byte, error) {
	b := make([]byte, maxMessage)
	for {
		n, err := unix.Read(sock, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return nil, io.EOF
		default:
			return b[:n], nil
		}
	}
}

// receiveReport reads one report in the parent. io.EOF says that stage 2 became
// the program or died.
func receiveReport(c *net.UnixConn) (*report, []int, error) {
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*(2+maxHostPorts+4*maxNameservers)))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, nil, err
	}
	fds, err := parseRights(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	var r report
	if err := json.Unmarshal(b[:n], &r); err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return &r, fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// unixConn makes a net.UnixConn of fd, which it takes over.
func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("control socket is not of family unix")
	}
	return u, nil
}
