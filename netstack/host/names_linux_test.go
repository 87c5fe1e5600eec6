// SPDX-License-Identifier: Apache-2.0

package host

import (
	"strings"
	"testing"
)

// etc makes /etc and /run ours in a world, with the resolver of a laptop: a symlink
// to what systemd-resolved keeps.
const etc = `mkdir -m 755 /mnt/etc /mnt/work
	mount -t overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work none /etc
	mount -t tmpfs -o mode=755 none /run
	mkdir -p /run/systemd/resolve /run/elsewhere /run/nscd
	chmod 777 /run/elsewhere; mkfifo -m 666 /run/elsewhere/a /run/elsewhere/b
	stub=/run/elsewhere/stub-resolv.conf
	printf 'nameserver 127.0.0.53\nsearch corp.example lab.example\noptions ndots:3 edns0\n' >$stub
	rm -f /etc/resolv.conf
	# The program says that it is there, and goes on when it is told.
	program='cat /etc/resolv.conf >/dev/null || :; echo >/run/elsewhere/a; read x </run/elsewhere/b; '
	started() { read x </run/elsewhere/a; }
	proceed() { echo >/run/elsewhere/b; wait $!; }
	`

// askAny asks every way that a program may know: libc, and the address that the
// host's file would have it ask, over UDP and TCP.
const askAny = `getent ahostsv4 echo.testing | head -1 | cut -d" " -f1; dig +short @127.0.0.53 a.b; dig +short +tcp @127.0.0.53 a.b; dig +short @8.8.8.8 a.b`

// TestResolvConfSixWays changes the host's resolv.conf in the ways that hosts do,
// while the program runs.
func TestResolvConfSixWays(t *testing.T) {
	answers := strings.TrimSpace(strings.Repeat(meshAddr+"\n", 4))
	ours := "search corp.example lab.example\noptions ndots:3 edns0\n"
	for _, row := range []struct{ name, before, change, show, want string }{
		{"symlink", `ln -s ../run/elsewhere/stub-resolv.conf /etc/resolv.conf`, `:`, "tail -2 /etc/resolv.conf", ours + answers},
		{
			"target renamed", `ln -s ../run/elsewhere/stub-resolv.conf /etc/resolv.conf`,
			`echo nameserver 127.0.0.53 >/run/elsewhere/new; mv /run/elsewhere/new $stub`, "tail -2 /etc/resolv.conf", ours + answers,
		},
		{
			"dangling", `ln -s ../run/elsewhere/missing /etc/resolv.conf`, `:`, "tail -2 /etc/resolv.conf",
			"nameserver 192.0.0.1\noptions edns0\n" + meshAddr + "\n" + meshAddr,
		},
		{
			// The mount goes with the file that it was on; the stub sockets answer.
			"replaced", `cp $stub /etc/resolv.conf`, `cp $stub /etc/new; mv /etc/new /etc/resolv.conf`,
			"head -1 /etc/resolv.conf", "nameserver 127.0.0.53\n" + answers,
		},
		{
			"written in place", `cp $stub /etc/resolv.conf`, `echo nameserver 127.0.0.53 >/etc/resolv.conf`,
			"tail -2 /etc/resolv.conf", ours + answers,
		},
		{"missing", `:`, `:`, "ls /etc/resolv.conf 2>/dev/null || :", meshAddr + "\n" + meshAddr},
	} {
		ask := askAny
		if row.name == "dangling" || row.name == "missing" { // nobody named 127.0.0.53
			ask = `getent ahostsv4 echo.testing | head -1 | cut -d" " -f1; dig +short @8.8.8.8 a.b`
		}
		t.Run(row.name, func(t *testing.T) {
			inWorlds(t, func(t *testing.T, w world) {
				got := w.ok(t, etc+row.before+`
					$EXEC -- sh -c "$program"'`+row.show+"; "+ask+`' &
					started; `+row.change+`; proceed`)
				if got != row.want {
					t.Errorf("got\n%s\nwant\n%s", got, row.want)
				}
			})
		})
	}
}

func TestResolvConfIsReadOnly(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		got := w.ok(t, etc+`ln -s ../run/elsewhere/stub-resolv.conf /etc/resolv.conf
			umask 077
			$EXEC -- sh -c 'echo x 2>/dev/null >/etc/resolv.conf || stat -L -c %a /etc/resolv.conf'`)
		if got != "644" {
			t.Errorf("got %s", got)
		}
	})
}

// TestMountWays holds both ways of mounting a file to the same result, whatever the
// kernel at hand prefers.
func TestMountWays(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		for _, way := range []string{"detached", "bound"} {
			got := w.ok(t, `mkdir -m 777 /mnt/d; echo old >/mnt/d/target; ln -s target /mnt/d/link
				$AS unshare -Ur -m --propagation slave $X probe mount `+way+` /mnt/d/link
				cat /mnt/d/link; ls /dev/null`)
			if want := "new text\nold\nread-only file system\nold\n/dev/null"; got != want {
				t.Errorf("%s: got\n%s\nwant\n%s", way, got, want)
			}
		}
	})
}

// TestHostDaemonsAreNotAsked has daemons listen where libc asks them first.
func TestHostDaemonsAreNotAsked(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		const script = `ln -s ../run/elsewhere/stub-resolv.conf /etc/resolv.conf
			echo 'hosts: files myhostname resolve [!UNAVAIL=return] dns # as systemd has it' >/etc/nsswitch.conf
			chmod 777 /run/nscd /run/systemd/resolve
			$AS $X probe daemon /run/nscd/socket /run/systemd/resolve/io.systemd.Resolve -- `
		ask := `sh -c 'getent ahostsv4 echo.testing | head -1 | cut -d" " -f1; grep hosts: /etc/nsswitch.conf;
			for s in /run/nscd/socket /var/run/nscd/socket /run/systemd/resolve/io.systemd.Resolve; do '$X' probe dial unix $s; done'`
		got := w.ok(t, etc+script+"$X mini-exec -- "+ask)
		want := strings.Join([]string{
			meshAddr,
			"hosts: files myhostname dns # as systemd has it",
			"dial unix /run/nscd/socket: connect: no such file or directory",
			"dial unix /var/run/nscd/socket: connect: no such file or directory",
			"dial unix /run/systemd/resolve/io.systemd.Resolve: connect: no such file or directory",
			"asked 0",
		}, "\n")
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		// The test would prove nothing if libc did not ask at all.
		if got := w.ok(t, etc+script+"getent hosts localhost"); strings.HasSuffix(got, "asked 0") {
			t.Errorf("libc asks no daemon here: %s", got)
		}
	})
}

func TestNsswitchStays(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		got := w.ok(t, etc+`echo 'hosts: files mdns4_minimal [NOTFOUND=return] dns' >/etc/nsswitch.conf
			: >/etc/resolv.conf
			$EXEC -- grep -o " /etc/[a-z.]*" /proc/self/mountinfo | sort -u`)
		if want := "/etc/resolv.conf"; got != want {
			t.Errorf("mounted: %s", got)
		}
	})
}
