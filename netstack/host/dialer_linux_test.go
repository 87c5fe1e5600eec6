// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// option reads a socket option of c.
func option(t *testing.T, c any, level, name int) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	if err := onSocket(raw, "", func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, level, name)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestDialer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d Dialer
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, row := range []struct {
		name        string
		level, what int
		want        int
	}{
		{"keepalive", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"idle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
		{"interval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 30},
		{"count", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		{"nodelay", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"unsent", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLowat},
		{"mark", unix.SOL_SOCKET, unix.SO_MARK, 0},
	} {
		if got := option(t, c, row.level, row.what); got != row.want {
			t.Errorf("%s is %d, want %d", row.name, got, row.want)
		}
	}
}

func TestDialerEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var d Dialer
	if _, err := d.DialContext(ctx, "tcp", "127.0.0.1:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDialerMarks(t *testing.T) {
	needRoot(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := Dialer{Mark: MarkOwn}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := d.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, c := range []any{c, p} {
		if got := option(t, c, unix.SOL_SOCKET, unix.SO_MARK); got != MarkOwn {
			t.Errorf("%T: mark %#x", c, got)
		}
	}
	// Without the right to mark nothing leaves, rather than into our own tunnel.
	if got := worlds[1].ok(t, "$AS $X probe marked "+l.Addr().String()); !strings.Contains(got, "SO_MARK: operation not permitted") {
		t.Errorf("got %q", got)
	}
}

func TestWatchIPv6(t *testing.T) {
	needRoot(t)
	got := worlds[0].ok(t, "unshare -n $X probe watch6")
	if want := "false\ntrue\nfalse\nended <nil>"; got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestParseNetlink(t *testing.T) {
	ack := linkUp(1, 0).Serialize()
	two := append(append([]byte(nil), ack...), ack...)
	if msgs, err := parseNetlink(two); err != nil || len(msgs) != 2 || msgs[1].Header.Type != unix.RTM_NEWLINK {
		t.Errorf("got %d messages, %v", len(msgs), err)
	}
	for n := range len(ack) {
		if msgs, err := parseNetlink(ack[:n]); len(msgs) != 0 || n >= unix.SizeofNlMsghdr && err == nil {
			t.Errorf("%d bytes: %d messages, %v", n, len(msgs), err)
		}
	}
	short := append([]byte(nil), ack...)
	copy(short, []byte{4, 0, 0, 0})
	if _, err := parseNetlink(short); err == nil {
		t.Error("a length below the header's was accepted")
	}
}
