// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Stage2 makes the private world and becomes the program, if args are those of
// a process that [StartExec] started; it does not return then. Otherwise it
// returns false at once. It must be the first statement of main: flags, logs and
// signal handlers are the parent's.
//
// It never calls unshare or setns, so being multi-threaded does no harm. Only
// calls that the kernel counts by thread (capabilities, PDEATHSIG) need the lock.
func Stage2(args []string) (ran bool) {
	if len(args) < 4 || args[1] != stage2Verb {
		return false
	}
	runtime.LockOSThread()
	sock, err := strconv.Atoi(args[2])
	if err != nil || sock < 3 {
		os.Exit(ExitSetup)
	}
	unix.CloseOnExec(sock)
	s := &stage{sock: sock}
	if r := s.run(args[3:]); r != nil {
		// Where the parent is gone too, there is nobody to tell.
		_ = sendReport(sock, r, nil)
	}
	os.Exit(ExitSetup)
	return true
}

// A stage is stage 2 at work.
type stage struct {
	sock int
	plan plan
	rt   *rtnl
}

// run returns what failed; nil if only the parent did.
func (s *stage) run(argv []string) *report {
	text, err := receiveMessage(s.sock)
	if err != nil {
		return nil
	}
	if err := json.Unmarshal(text, &s.plan); err != nil {
		return failure("plan", ExitSetup, err)
	}
	ready, fds, failed := s.build()
	if failed != nil {
		return failed
	}
	if err := sendReport(s.sock, ready, fds); err != nil {
		return nil
	}
	closeAll(fds) // the parent's alone now: the TUN must end with it
	if text, err := receiveMessage(s.sock); err != nil || string(text) != goMessage {
		return nil
	}
	return s.become(argv)
}

// build makes mounts, TUN, network and sockets. Of the descriptors the TUN comes
// first, then the rtnetlink socket, stubs over UDP, stubs over TCP, host ports.
func (s *stage) build() (*report, []int, *report) {
	if err := s.mounts(); err != nil {
		return nil, nil, failure("mounts", ExitSetup, err)
	}
	d, warnings, err := openTUN(s.plan.Name)
	if err != nil {
		return nil, nil, failure("tun", ExitSetup, err)
	}
	d.MTU = s.plan.MTU
	r := &report{Device: d, Warnings: warnings}
	if r.NetNS, err = netnsOf("self"); err != nil {
		return nil, nil, failure("network", ExitSetup, err)
	}
	if s.rt, err = newRTNL(); err != nil {
		return nil, nil, failure("network", ExitSetup, err)
	}
	if err := s.network(r); err != nil {
		return nil, nil, failure("network", ExitSetup, err)
	}
	socks, err := s.sockets(r)
	if err != nil {
		return nil, nil, failure("sockets", ExitSetup, err)
	}
	return r, append([]int{d.FD, s.rt.fd}, socks...), nil
}

// mounts gives the program its names, and its mounts to nobody else: in a new
// mount namespace made by clone everything is still shared with the host's.
func (s *stage) mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return &os.PathError{Op: "make slave", Path: "/", Err: err}
	}
	if err := mountFile(ResolvConfPath, s.plan.ResolvConf); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := hideResolvers(); err != nil {
		return err
	}
	text, err := os.ReadFile(nsswitchPath)
	if err != nil {
		return nil // then libc asks DNS
	}
	if text, changed := withoutResolve(text); changed {
		return mountFile(nsswitchPath, text)
	}
	return nil
}

// become drops privileges and executes the program. Order matters: a change of
// user clears PDEATHSIG, and capabilities are needed to change the user.
func (s *stage) become(argv []string) *report {
	if l := s.plan.Login; l != nil {
		if err := errors.Join(
			os.NewSyscallError("setgroups", syscall.Setgroups(l.Groups)),
			os.NewSyscallError("setgid", syscall.Setgid(l.GID)),
			os.NewSyscallError("setuid", syscall.Setuid(l.UID)),
		); err != nil {
			return failure("user", ExitSetup, err)
		}
	}
	if err := dropCapabilities(s.plan.KeepCaps); err != nil {
		return failure("privileges", ExitSetup, err)
	}
	// The program is cut off when the parent dies; it may as well end.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return failure("privileges", ExitSetup, os.NewSyscallError("prctl PR_SET_PDEATHSIG", err))
	}
	if os.Getppid() != s.plan.Parent {
		return nil // it died before the line above
	}
	err := execvp(argv, os.Environ()) //rule:allow what the parent gave as the program's environment
	code := ExitNotExecutable
	if errors.Is(err, unix.ENOENT) {
		code = ExitNotFound
	}
	return failure(stageExec, code, err)
}

// dropCapabilities leaves none, but for root's own.
func dropCapabilities(keep bool) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT", err)
	}
	if keep {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return os.NewSyscallError("capset", unix.Capset(&header, &none[0]))
}

// defaultPath is where libc looks for programs when PATH is unset.
const defaultPath = "/bin:/usr/bin"

// execvp replaces this process as execvp(3) would: by trying, as the user that
// the program runs as, so that no rule of access has to be guessed. It returns
// only what kept it from that.
func execvp(argv, env []string) error {
	name := argv[0]
	notFound := &os.PathError{Op: "run", Path: name, Err: unix.ENOENT}
	if name == "" {
		return notFound
	}
	if strings.Contains(name, "/") {
		return &os.PathError{Op: "run", Path: name, Err: execve(name, argv, env)}
	}
	path, ok := getEnv(env, "PATH")
	if !ok {
		path = defaultPath
	}
	var denied error
	for dir := range strings.SplitSeq(path, ":") {
		file := dir + "/" + name
		if dir == "" {
			file = "./" + name
		}
		err := execve(file, argv, env)
		switch {
		case errors.Is(err, unix.EACCES):
			// A directory that may not be searched says nothing about the program.
			if _, missing := os.Lstat(file); missing == nil {
				denied = &os.PathError{Op: "run", Path: file, Err: err}
			}
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENODEV),
			errors.Is(err, unix.ESTALE), errors.Is(err, unix.ETIMEDOUT):
		default:
			return &os.PathError{Op: "run", Path: file, Err: err}
		}
	}
	if denied != nil {
		return denied
	}
	return notFound
}

// execve runs file; a script without a #! line by the shell, as execvp does.
func execve(file string, argv, env []string) error {
	err := syscall.Exec(file, argv, env)
	if errors.Is(err, unix.ENOEXEC) {
		return syscall.Exec("/bin/sh", append([]string{"sh", file}, argv[1:]...), env)
	}
	return err
}
