// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// facts is what may explain a refusal. They are read after it: an error number
// alone is ambiguous, and a setting that might refuse need not.
type facts struct {
	maxUserNS   string // user.max_user_namespaces
	unprivClone string // kernel.unprivileged_userns_clone, of old Debian and Arch
	appArmor    string // kernel.apparmor_restrict_unprivileged_userns, of Ubuntu
	seLinux     string // 1: enforcing
	exe         string // our own file
	exeMode     uint32
	fileCaps    bool   // our file has capabilities of its own
	container   bool   // we look like in a container
	tunMode     uint32 // mode of /dev/net/tun; 0: there is none
}

func readFacts() facts {
	f := facts{
		maxUserNS:   readSetting("/proc/sys/user/max_user_namespaces"),
		unprivClone: readSetting("/proc/sys/kernel/unprivileged_userns_clone"),
		appArmor:    readSetting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
		seLinux:     readSetting("/sys/fs/selinux/enforce"),
		container:   inContainer(),
	}
	f.exe, _ = os.Readlink(selfExe)
	var st unix.Stat_t
	if unix.Stat(selfExe, &st) == nil {
		f.exeMode = st.Mode
	}
	if n, err := unix.Getxattr(selfExe, "security.capability", nil); err == nil && n > 0 {
		f.fileCaps = true
	}
	if unix.Stat(tunPath, &st) == nil {
		f.tunMode = st.Mode
	}
	return f
}

func readSetting(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// inContainer looks for the marks that engines leave.
func inContainer() bool {
	for _, mark := range []string{"/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io"} {
		if _, err := os.Stat(mark); err == nil {
			return true
		}
	}
	return false
}

const (
	hintSudo      = "or run it as root: sudo nasp-tun exec --user $USER -- ..."
	hintContainer = "give the container --cap-add SYS_ADMIN --cap-add NET_ADMIN --device /dev/net/tun\n" +
		"(and --security-opt apparmor=unconfined where mount is denied)"
)

// errNoUserNS stands for an ENOSPC, whose text "no space left on device" misleads.
var errNoUserNS = errors.New("user namespaces are switched off")

// explainClone makes an error of a refused clone, with the cause and what to do.
func explainClone(err error, rootless bool, f facts) *ExecError {
	e := setupError("namespaces", fmt.Errorf("clone: %w", err))
	var known *ExecError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, unix.ENOSPC):
		if f.maxUserNS == "0" {
			e.Err = errNoUserNS
		} else {
			e.Err = errors.New("the limit of namespaces is reached")
		}
		e.Hint = "sysctl user.max_user_namespaces=15000   (as root; it is " + orUnknown(f.maxUserNS) + ")\n" + hintSudo
	case errors.Is(err, unix.EUSERS):
		e.Err = errors.New("user namespaces are nested too deeply")
		e.Hint = "the kernel allows 32 levels"
	case errors.Is(err, unix.E2BIG):
		e.Stage, e.Code, e.Err = stageExec, ExitNotExecutable, err
	case errors.Is(err, unix.ENOENT):
		e.Err = fmt.Errorf("start %s: %w", selfExe, err)
		e.Hint = "/proc must be mounted"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Hint = f.deniedHint(rootless)
	}
	return e
}

func orUnknown(s string) string {
	if s == "" {
		return "not known"
	}
	return s
}

// deniedHint explains a denial that the kernel gives no reason for.
func (f facts) deniedHint(rootless bool) string {
	switch {
	case !rootless && f.container:
		return hintContainer
	case !rootless:
		return "CAP_SYS_ADMIN and CAP_NET_ADMIN are there, so a security module or seccomp denies it: see dmesg"
	case f.unprivClone == "0":
		return "sysctl kernel.unprivileged_userns_clone=1   (as root)\n" + hintSudo
	case f.appArmor == "1":
		return f.profile() + "\n" + hintSudo
	case f.fileCaps || f.exeMode&0o444 != 0o444 && f.exeMode != 0:
		return fmt.Sprintf("%s must be readable and have no capabilities of its own:\n  chmod 755 %[1]s; setcap -r %[1]s", f.exe)
	case f.container:
		return hintContainer
	case f.seLinux == "1":
		return "SELinux may deny it: ausearch -m avc -ts recent\n" + hintSudo
	}
	return "a security module or seccomp denies user namespaces: see dmesg\n" + hintSudo
}

// profile is an AppArmor profile that allows this one program user namespaces; the
// sysctl would allow them to all.
func (f facts) profile() string {
	return fmt.Sprintf(`AppArmor allows user namespaces only to programs with a profile. As root:
  cat >/etc/apparmor.d/nasp-tun <<'END'
abi <abi/4.0>,
include <tunables/global>
profile nasp-tun %q flags=(unconfined) {
  userns,
}
END
  apparmor_parser -r /etc/apparmor.d/nasp-tun`, f.exe)
}

// refusal makes an error of what stage 2 reported.
func (c *child) refusal(r *report) *ExecError {
	return explainStage(r, c.rootless, readFacts())
}

func explainStage(r *report, rootless bool, f facts) *ExecError {
	e := &ExecError{Stage: r.Stage, Code: r.Code, Err: &stageError{r.Err, r.Errno}}
	denied := r.Errno == unix.EACCES || r.Errno == unix.EPERM
	switch {
	case r.Stage == "tun":
		e.Hint = f.tunHint(r.Errno)
	case r.Stage == "mounts" && denied, r.Stage == "network" && denied:
		e.Hint = f.deniedHint(rootless)
	case r.Stage == "mounts" && r.Errno == unix.EINVAL:
		e.Hint = "/ is not a mount point here, as in a chroot: run it outside"
	case r.Stage == "sockets" && r.Errno == unix.EADDRINUSE:
		e.Hint = "a --host-port is named twice, or is 53"
	}
	return e
}

// tunHint explains why no TUN can be made.
func (f facts) tunHint(errno syscall.Errno) string {
	switch errno {
	case unix.EACCES:
		if f.tunMode&0o006 != 0o006 {
			return "chmod 666 " + tunPath + "   (as root; the default of udev, and harmless: making a device still needs CAP_NET_ADMIN)\n" + hintSudo
		}
		return tunPath + " is on a file system without devices (nodev)\nin a container: pass it with --device " + tunPath
	case unix.EPERM:
		if f.container {
			return hintContainer
		}
		return "the device cgroup or a security module denies it\nin a container: pass it with --device " + tunPath
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		if f.container {
			return "modprobe tun on the host, and pass it to the container: --device " + tunPath
		}
		return "modprobe tun   (as root)"
	case unix.EBUSY:
		return "the name " + deviceName + " is taken"
	}
	return ""
}
