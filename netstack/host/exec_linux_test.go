// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestPrivateNetwork(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		got := w.ok(t, `$EXEC -- sh -c '
			ip -o addr show | awk "{print \$2, \$4}"
			ip route; ip -6 route show default
			ip -o link show nasp0 | grep -o "mtu [0-9]*\|MULTICAST"
			ping_range=$(cat /proc/sys/net/ipv4/ping_group_range); test -n "$ping_range"
			cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/tcp_tw_reuse'`)
		want := strings.Join([]string{
			"lo 127.0.0.1/8", "lo ::1/128", "nasp0 192.0.0.2/32", "nasp0 fd6e:6173:7074::2/128",
			"default dev nasp0 proto 155 scope link ",
			"unreachable default dev lo proto 155 metric 4096 pref medium",
			"mtu 1500", "1024", "1",
		}, "\n")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPrivilegesAreGone(t *testing.T) {
	needRoot(t)
	got := worlds[1].ok(t, `$EXEC -- sh -c 'id -u; id -g; id -G; grep -E "^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)" /proc/self/status
		for try in "ip addr add 10.1.1.1 dev lo" "ip link set nasp0 down" "mount -t tmpfs none /mnt" \
			"umount /etc/resolv.conf" "unshare -n true" "nsenter -t 1 -n true"; do
			$try 2>/dev/null && echo "allowed: $try"
		done
		unshare -Ur true && echo nested'`)
	want := strings.Join([]string{
		someUser, someUser, someUser,
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000",
		"NoNewPrivs:\t0", "nested",
	}, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestCallersWorld compares what a program sees in a private network with what it
// sees without.
func TestCallersWorld(t *testing.T) {
	const see = `env -0 | grep -zvE "^(_|SHLVL|EXEC|X|AS|SCRIPT)=" | sort -z | od -c
		pwd; umask; nice; ulimit -Sn; ulimit -Hn; id
		grep -E "^(Sig(Blk|Ign)|NoNewPrivs)" /proc/self/status
		for fd in 3 5 9 77; do test -e /proc/$$/fd/$fd && readlink /proc/$$/fd/$fd && head -c 9 <&$fd; done 2>/dev/null || :`
	inWorlds(t, func(t *testing.T, w world) {
		// What a shell, a build tool or a service manager may have set.
		set := `cd /usr; umask 027; ulimit -Sn 333; exec 3</etc/passwd 5</etc/hostname; export ODD="$(printf 'a\377b\nc')"
			see() { $AS env --ignore-signal=HUP,INT --block-signal=USR1,TERM nice -n 3 "$@"; }
			`
		without := w.ok(t, set+`see sh -c '`+see+`'`)
		within := w.ok(t, set+`see /mnt/x mini-exec -- sh -c '`+see+`'`)
		if diff := cmp.Diff(strings.Split(without, "\n"), strings.Split(within, "\n")); diff != "" {
			t.Error(diff)
		}
		if !strings.Contains(within, "/etc/hostname") {
			t.Errorf("descriptor 5 is missing:\n%s", within)
		}
	})
}

func TestArgumentsAreBytes(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		got := w.ok(t, `PROBE="$(printf 'v\377')" $EXEC -- "$X" probe args "$(printf '\377\n')" "" "--" "a b"`)
		if want := `["\xff" "" "--" "a b"] "v\xff"`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestExitStatus(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		for _, row := range []struct {
			program string
			code    int
			signal  syscall.Signal
		}{
			{"true", 0, 0},
			{"false", 1, 0},
			{"sh -c 'exit 7'", 7, 0},
			{"sh -c 'exit 125'", 125, 0},
			{"sh -c 'exit 126'", 126, 0},
			{"sh -c 'exit 127'", 127, 0},
			{"sh -c 'exit 255'", 255, 0},
			{"sh -c 'kill -INT $$'", 0, unix.SIGINT},
			{"$X probe die SIGTERM", 0, unix.SIGTERM},
			{"$X probe die SIGKILL", 0, unix.SIGKILL},
			{"$X probe die SIGSEGV", 0, unix.SIGSEGV},
			{"$X probe die SIGABRT", 0, unix.SIGABRT},
			{"$X probe die SIGQUIT", 0, unix.SIGQUIT},
			{"$X probe die SIGHUP", 0, unix.SIGHUP},
			{"$X probe die SIGUSR1", 0, unix.SIGUSR1},
			{"$X probe die SIGPIPE", 0, unix.SIGPIPE},
		} {
			t.Run(row.program, func(t *testing.T) {
				r := w.run(t, "exec $EXEC -- "+row.program)
				if got := exitStatus(unix.WaitStatus(r.status)); got != (ExitStatus{Code: row.code, Signal: row.signal}) {
					t.Errorf("ended with %v", got)
				}
				if r.out != "" || r.err != "" {
					t.Errorf("something was said: %s%s", r.out, r.err)
				}
			})
		}
	})
}

func TestProgramThatCannotRun(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		for _, row := range []struct {
			set, program string
			code         int
			text         string
		}{
			{"", "no-such-program", 127, "run no-such-program: no such file"},
			{"", "/no/such/program", 127, "run /no/such/program: no such file"},
			{"", "/etc/passwd", 126, "run /etc/passwd: permission denied"},
			{"", "/etc", 126, "run /etc: permission denied"},
			{"mkdir /mnt/bin; echo x >/mnt/bin/tool; PATH=/mnt/bin:$PATH", "tool", 126, "run /mnt/bin/tool: permission denied"},
			{"printf '#!/no/such/interpreter\n' >/mnt/script; chmod 755 /mnt/script", "/mnt/script", 127, "no such file"},
			{"cd /mnt; echo 'exit 9' >script; chmod 755 script; PATH=:$PATH", "script", 9, ""},
		} {
			t.Run(row.program, func(t *testing.T) {
				r := w.run(t, row.set+"\n$EXEC -- "+row.program)
				if r.status.ExitStatus() != row.code || !strings.Contains(r.err, row.text) {
					t.Errorf("ended with %s: %s", exitWords(r.status), r.err)
				}
			})
		}
	})
}

func TestUser(t *testing.T) {
	needRoot(t)
	w := worlds[0]
	const see = `sh -c 'id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL ${XDG_RUNTIME_DIR-unset}; grep CapEff /proc/self/status; umount /etc/resolv.conf 2>/dev/null || echo kept'`
	t.Run("name", func(t *testing.T) {
		got := w.ok(t, `mkdir /mnt/etc /mnt/work; mount -t overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work none /etc
			echo "worker:x:4300:4301:W:/srv/w:/bin/dash" >>/etc/passwd
			printf 'w1:x:4301:\nw2:x:4302:root,worker\n' >>/etc/group
			XDG_RUNTIME_DIR=/run/user/0 $EXEC --user worker -- `+see)
		if want := "4300\n4301\n4301 4302\n/srv/w worker worker /bin/dash unset\nCapEff:\t0000000000000000\nkept"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("number", func(t *testing.T) {
		got := w.ok(t, `$EXEC --user `+someUser+` -- `+see)
		if want := "4242\n4242\n4242\n/ 4242 4242 /bin/sh unset\nCapEff:\t0000000000000000\nkept"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	for who, want := range map[string]string{"no-such-user": "unknown user", "-1": "unknown user"} {
		if r := w.run(t, "$EXEC --user="+who+" -- true"); r.status.ExitStatus() != ExitSetup || !strings.Contains(r.err, want) {
			t.Errorf("%s: ended with %v: %s", who, exitWords(r.status), r.err)
		}
	}
	r := worlds[1].run(t, `$EXEC --user nobody -- true`)
	if r.status.ExitStatus() != ExitSetup || !strings.Contains(r.err, "needs root") {
		t.Errorf("rootless: ended with %v: %s", exitWords(r.status), r.err)
	}
	if r := w.run(t, `SUDO_USER=someone $EXEC -- true`); !strings.Contains(r.err, "--user someone") {
		t.Errorf("no hint after sudo: %s", r.err)
	}
}

func TestHostPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "the host's own")
			c.Close()
		}
	}()
	inWorlds(t, func(t *testing.T, w world) {
		port := l.Addr().(*net.TCPAddr).Port
		dial := fmt.Sprintf("-- $X probe dial tcp 127.0.0.1:%d", port)
		if got := w.ok(t, fmt.Sprintf("$EXEC --host-port %d %s", port, dial)); got != "the host's own" {
			t.Errorf("got %q", got)
		}
		if got := w.ok(t, "$EXEC --host-port 80 -- cat /proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "1024" {
			t.Errorf("low ports stayed open: %s", got)
		}
		if got := w.ok(t, "$EXEC "+dial); !strings.Contains(got, "connection refused") {
			t.Errorf("without --host-port: %q", got)
		}
		r := w.run(t, "$EXEC --host-port 80 --host-port 80 -- true")
		if r.status.ExitStatus() != ExitSetup || !strings.Contains(r.err, "named twice") {
			t.Errorf("a port twice: %v, %s", exitWords(r.status), r.err)
		}
	})
}

func TestAbstractSocketIsNotReached(t *testing.T) {
	name := fmt.Sprintf("@nasp-tun-test-%d", os.Getpid())
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	inWorlds(t, func(t *testing.T, w world) {
		if got := w.ok(t, "$EXEC -- $X probe dial unix "+name); !strings.Contains(got, "connection refused") {
			t.Errorf("got %q", got)
		}
	})
}

func TestRoutes6(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		const dead = "unreachable default dev lo proto 155 metric 4096 pref medium"
		const live = "default dev nasp0 proto 155 metric 1024 pref medium\n"
		for _, row := range []struct{ flags, show, want string }{
			{"", "default", dead},
			{"-ipv6", "default", live + dead},
			{"-routes6 on,on", "default", live + dead},
			{"-routes6 on,off,off", "default", dead},
			{"-ipv6 -routes6 off,on", "default", live + dead},
			{"-routes6 fd00::5", "root fd00::/16", "fd00::5 dev nasp0 proto 155 metric 1024 pref medium"},
			{"-routes6 fd00::5,fd00::6,fd00::6", "root fd00::/16", "fd00::6 dev nasp0 proto 155 metric 1024 pref medium"},
			{"-routes6 fd00::5,none", "root fd00::/16", ""},
		} {
			if got := w.ok(t, "$EXEC "+row.flags+" -- ip -6 route show "+row.show); got != row.want && row.want != "" ||
				row.want == "" && strings.Contains(got, "fd00::5") {
				t.Errorf("%s: got\n%s\nwant\n%s", row.flags, got, row.want)
			}
		}
	})
}

// TestTenAtOnce holds ten private networks open together, each with a device of the
// same name and address, and one inside another.
func TestTenAtOnce(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		got := w.ok(t, `mkdir -m 777 /mnt/t; mkfifo -m 666 /mnt/t/ready /mnt/t/go
			for i in 1 2 3 4 5 6 7 8 9 10; do
				$EXEC -- sh -c 'ip -o -4 addr show nasp0 >/dev/null; echo up >/mnt/t/ready; read x </mnt/t/go; getent hosts a.b | cut -d" " -f1' &
			done
			exec 3<>/mnt/t/ready
			for i in 1 2 3 4 5 6 7 8 9 10; do read x <&3; done
			exec 4<>/mnt/t/go
			printf '\n\n\n\n\n\n\n\n\n\n' >&4
			wait`)
		if want := strings.TrimSpace(strings.Repeat(meshAddr+"\n", 10)); got != want {
			t.Errorf("got\n%s", got)
		}
	})
	t.Run("nested", func(t *testing.T) {
		inWorlds(t, func(t *testing.T, w world) {
			got := w.ok(t, `$EXEC -- $X mini-exec -- sh -c 'ip -o -4 addr show nasp0 | grep -c 192.0.0.2; getent hosts a.b | cut -d" " -f1'`)
			if want := "1\n" + meshAddr; got != want {
				t.Errorf("got %q", got)
			}
		})
	})
}

// TestHostIsLeftAlone runs as root on a host whose mounts are shared, as systemd makes
// them, and looks at it before, while the program runs, and after.
func TestHostIsLeftAlone(t *testing.T) {
	needRoot(t)
	got := worlds[0].ok(t, `mount --make-rshared /
		exec unshare -n --propagation unchanged sh -euc '
			ip link set lo up; ip addr add 10.9.9.9/32 dev lo
			mkdir -m 777 /mnt/t; mkfifo /mnt/t/up /mnt/t/go
			state() {
				cut -d" " -f3- /proc/self/mountinfo; cat /etc/resolv.conf /etc/nsswitch.conf
				ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
				cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/tcp_tw_reuse
				ls /tmp /run /dev | grep nasp || :
			}
			state >/mnt/t/before
			$EXEC -- sh -c "mount -t tmpfs none /srv; cat /etc/resolv.conf | sed -n 2p; echo >/mnt/t/up; read x </mnt/t/go" &
			read x </mnt/t/up
			state >/mnt/t/during
			echo >/mnt/t/go
			wait
			state >/mnt/t/after
			sed -i "/nasp-tun-demo/d" /mnt/t/before /mnt/t/during /mnt/t/after
			diff /mnt/t/before /mnt/t/during; diff /mnt/t/before /mnt/t/after'`)
	if want := "nameserver 192.0.0.1"; got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestTooLong(t *testing.T) {
	needRoot(t)
	_, err := StartExec(t.Context(), ExecConfig{Args: []string{"true"}, Env: []string{"LONG=" + strings.Repeat("x", 1<<20)}})
	var e *ExecError
	if !errors.As(err, &e) || e.Code != ExitNotExecutable || !errors.Is(err, unix.E2BIG) {
		t.Errorf("got %v", err)
	}
	many := make([]uint16, maxHostPorts+1)
	if _, err := StartExec(t.Context(), ExecConfig{Args: []string{"true"}, HostPorts: many}); !errors.As(err, &e) || e.Code != ExitSetup {
		t.Errorf("got %v", err)
	}
	if _, err := StartExec(t.Context(), ExecConfig{}); !errors.As(err, &e) || e.Code != ExitNotFound {
		t.Errorf("got %v", err)
	}
}

// TestGivenUp: a set-up that is not wanted any more leaves nothing, and neither does
// one whose program was never started.
func TestGivenUp(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cfg := ExecConfig{Args: []string{"true"}, Resolv: NewResolvers("").Config()}
	if _, err := StartExec(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for _, linger := range []bool{false, true} {
		cfg.Linger = linger
		e, err := StartExec(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		<-e.Done()
		if got := e.Wait(); got.Signal != unix.SIGKILL {
			t.Errorf("ended with %v", got)
		}
		if err := e.SetIPv6(true); !errors.Is(err, net.ErrClosed) {
			t.Errorf("SetIPv6 after Close: %v", err)
		}
		if err := e.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("Signal after the end: %v", err)
		}
		if err := e.Close(); err != nil {
			t.Errorf("twice: %v", err)
		}
	}
}
