// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRefused makes the refusals that a machine can be brought to without changing it.
func TestRefused(t *testing.T) {
	needRoot(t)
	for _, row := range []struct {
		name, set    string
		exec         string // in place of $EXEC
		status       int
		stage, cause string
		hint         string
	}{
		{
			"tun is root's", "chmod 600 /dev/net/tun", "", ExitSetup,
			"tun", "open /dev/net/tun: permission denied", "chmod 666 /dev/net/tun",
		},
		{
			"nodev", "mount -o remount,nodev /dev/net", "", ExitSetup,
			"tun", "permission denied", "nodev",
		},
		{"no node", "rm /dev/net/tun", "", ExitSetup, "tun", "no such file", "modprobe tun"},
		{"no driver", "rm /dev/net/tun; mknod -m 666 /dev/net/tun c 10 251", "", ExitSetup, "tun", "no such device", "modprobe tun"},
		{
			// Root of a container that may do nothing, where no further user namespace is allowed.
			"no user namespaces", "",
			`$AS unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces
				exec setpriv --bounding-set=-sys_admin,-net_admin /mnt/x mini-exec -- true'`, ExitSetup,
			"namespaces", "user namespaces are switched off", "sysctl user.max_user_namespaces=15000",
		},
		{
			// The same with the capabilities: no user namespace is needed.
			"capabilities in place of user namespaces", "",
			`$AS unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; exec /mnt/x mini-exec -- true'`, 0,
			"", "", "",
		},
		{
			"namespaces used up", "",
			`$AS unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_net_namespaces; exec /mnt/x mini-exec -- true'`, ExitSetup,
			"namespaces", "limit of namespaces", "max_",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.exec == "" {
				row.exec = "$EXEC -- true"
			}
			r := worlds[1].run(t, row.set+"\n"+row.exec)
			if r.status.ExitStatus() != row.status {
				t.Fatalf("ended with %s: %s", exitWords(r.status), r.err)
			}
			for _, want := range []string{row.stage + ": ", row.cause, row.hint} {
				if row.status != 0 && !strings.Contains(r.err, want) {
					t.Errorf("%q is missing in:\n%s", want, r.err)
				}
			}
			if strings.Contains(r.err, "no space left") {
				t.Errorf("a misleading text: %s", r.err)
			}
		})
	}
}

// TestExplainClone covers the machines that are not at hand.
func TestExplainClone(t *testing.T) {
	for _, row := range []struct {
		name     string
		errno    syscall.Errno
		rooted   bool
		facts    facts
		err, tip string
	}{
		{"sysctl of RHEL 7", unix.ENOSPC, false, facts{maxUserNS: "0"}, "user namespaces are switched off", "it is 0"},
		{"limit reached", unix.ENOSPC, false, facts{maxUserNS: "12"}, "the limit of namespaces is reached", "it is 12"},
		{"nested", unix.EUSERS, false, facts{}, "nested too deeply", "32"},
		{"old Debian", unix.EPERM, false, facts{unprivClone: "0"}, "not permitted", "sysctl kernel.unprivileged_userns_clone=1"},
		{"Ubuntu", unix.EACCES, false, facts{appArmor: "1", exe: "/opt/nasp-tun"}, "permission denied", `profile nasp-tun "/opt/nasp-tun" flags=(unconfined)`},
		{"setcap", unix.EACCES, false, facts{fileCaps: true, exe: "/opt/x"}, "permission denied", "setcap -r /opt/x"},
		{"mode 0711", unix.EACCES, false, facts{exeMode: 0o100711, exe: "/opt/x"}, "permission denied", "chmod 755 /opt/x"},
		{"docker", unix.EPERM, false, facts{container: true, exeMode: 0o755}, "not permitted", "--cap-add SYS_ADMIN"},
		{"docker as root", unix.EPERM, true, facts{container: true}, "not permitted", "--cap-add SYS_ADMIN"},
		{"SELinux", unix.EACCES, false, facts{seLinux: "1"}, "permission denied", "ausearch"},
		{"not known", unix.EPERM, false, facts{}, "not permitted", "dmesg"},
		{"not known, root", unix.EPERM, true, facts{}, "not permitted", "seccomp"},
		{"no /proc", unix.ENOENT, false, facts{}, "/proc/self/exe", "/proc must be mounted"},
		{"another", unix.ENOMEM, false, facts{}, "clone: cannot allocate memory", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := explainClone(row.errno, !row.rooted, row.facts)
			if e.Code != ExitSetup || e.Stage != "namespaces" {
				t.Errorf("stage %s, code %d", e.Stage, e.Code)
			}
			if !strings.Contains(e.Error(), row.err) || !strings.Contains(e.Hint, row.tip) {
				t.Errorf("got %q, hint %q", e, e.Hint)
			}
		})
	}
	if e := explainClone(unix.E2BIG, true, facts{}); e.Code != ExitNotExecutable || e.Stage != "exec" {
		t.Errorf("arguments too long: %s, code %d", e, e.Code)
	}
}

func TestExplainStage(t *testing.T) {
	for _, row := range []struct {
		stage string
		errno syscall.Errno
		facts facts
		tip   string
	}{
		{"tun", unix.EACCES, facts{tunMode: 0o20600}, "chmod 666"},
		{"tun", unix.EACCES, facts{tunMode: 0o20666}, "nodev"},
		{"tun", unix.EPERM, facts{}, "cgroup"},
		{"tun", unix.EPERM, facts{container: true}, "--device /dev/net/tun"},
		{"tun", unix.ENOENT, facts{container: true}, "--device /dev/net/tun"},
		{"tun", unix.ENODEV, facts{}, "modprobe tun"},
		{"mounts", unix.EACCES, facts{appArmor: "1"}, "apparmor_parser"},
		{"mounts", unix.EPERM, facts{container: true}, "apparmor=unconfined"},
		{"mounts", unix.EINVAL, facts{}, "chroot"},
		{"network", unix.EPERM, facts{appArmor: "1"}, "userns"},
		{"exec", unix.ENOENT, facts{appArmor: "1"}, ""},
	} {
		r := failure(row.stage, ExitSetup, fmt.Errorf("try: %w", row.errno))
		e := explainStage(r, true, row.facts)
		if !errors.Is(e, row.errno) {
			t.Errorf("%s: %v is not %v", row.stage, e, row.errno)
		}
		if !strings.Contains(e.Hint, row.tip) || row.tip == "" && e.Hint != "" {
			t.Errorf("%s, %v: hint %q", row.stage, row.errno, e.Hint)
		}
	}
}
