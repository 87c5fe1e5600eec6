// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// selfExe starts this very program, even if its file was replaced or deleted.
const selfExe = "/proc/self/exe"

// A child is stage 2 and then the program, one process throughout.
type child struct {
	pid      int
	rootless bool
	linger   bool

	running atomic.Bool   // told to become the program
	ended   chan struct{} // closed by wait: the process has ended
	done    chan struct{} // closed by wait or reapOrphans: nothing is left to wait for
	status  ExitStatus    // set before ended is closed
	stop    chan struct{} // closed by stopLingering
	once    sync.Once
	wg      sync.WaitGroup

	mu     sync.Mutex
	reaped bool // the number may be another's now
}

// startChild starts stage 2 with the control socket at its own number.
func startChild(sock int, argv, env []string, linger bool) (*child, error) {
	c := &child{
		linger: linger,
		ended:  make(chan struct{}), done: make(chan struct{}), stop: make(chan struct{}),
	}
	if linger {
		// Before the program runs, or its orphans go to init.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, setupError("namespaces", os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", err))
		}
	}
	attr, rootless := namespaces()
	c.rootless = rootless
	started := make(chan error, 1)
	c.wg.Go(func() {
		// PDEATHSIG fires when the *thread* that forked ends (golang/go#27505), so
		// this one is kept until the program has been reaped.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		c.pid, err = forkExec(sock, argv, env, attr)
		started <- err
		if err == nil {
			c.wait()
		}
	})
	if err := <-started; err != nil {
		c.wg.Wait()
		return nil, explainClone(err, rootless, readFacts())
	}
	if linger {
		c.wg.Go(c.reapOrphans)
	}
	return c, nil
}

// namespaces returns how to make them. Capabilities decide, not the user id: root
// of a container may have them where no user namespace may be made, and root of
// another may lack them. Without, a user namespace gives them to us in our own
// world alone; users and groups keep their numbers there, since programs and D-Bus
// look at them.
func namespaces() (_ *syscall.SysProcAttr, rootless bool) {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	rootless = !hasCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN)
	if rootless {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	if os.Geteuid() != 0 {
		// Else they vanish when stage 2 is executed.
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
	}
	return attr, rootless
}

func hasCapabilities(caps ...uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	for _, c := range caps {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}

// forkExec starts stage 2. The control socket keeps its number: os/exec's ExtraFiles
// would put it at 3, over a descriptor that our caller left open for the program.
// For this moment it is open to any process started, so nothing else may start one
// now: it would hold the socket open, and [Exec.Start] waits for its end of file.
func forkExec(sock int, argv, env []string, attr *syscall.SysProcAttr) (int, error) {
	if _, err := unix.FcntlInt(uintptr(sock), unix.F_SETFD, 0); err != nil {
		return 0, os.NewSyscallError("fcntl", err)
	}
	defer unix.CloseOnExec(sock)
	argv = append([]string{os.Args[0], stage2Verb, strconv.Itoa(sock)}, argv...)
	return syscall.ForkExec(selfExe, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: attr})
}

// kill sends a signal unless the process was reaped, after which its number may be
// another's.
func (c *child) kill(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped {
		return os.ErrProcessDone
	}
	return unix.Kill(c.pid, sig)
}

// is reports whether pid is the program.
func (c *child) is(pid int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.reaped && pid == c.pid
}

// wait follows the process to its end, on the thread that started it.
func (c *child) wait() {
	if !c.linger {
		defer close(c.done)
	}
	defer close(c.ended)
	for {
		// Stopped or ended, but not reaped yet.
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, c.pid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		ws, err := c.reap()
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			c.status = ExitStatus{Code: ExitSetup} // reaped by somebody else: no status to have
			return
		case ws.Stopped():
			c.followStop()
		case ws.Exited(), ws.Signaled():
			c.status = exitStatus(ws)
			return
		}
	}
}

func (c *child) reap() (unix.WaitStatus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ws unix.WaitStatus
	pid, err := unix.Wait4(c.pid, &ws, unix.WUNTRACED|unix.WNOHANG, nil)
	if err == nil && pid == 0 {
		return 0, unix.EINTR // it was continued meanwhile
	}
	c.reaped = err != nil || !ws.Stopped()
	return ws, err
}

func exitStatus(ws unix.WaitStatus) ExitStatus {
	if ws.Signaled() {
		return ExitStatus{Signal: ws.Signal()}
	}
	return ExitStatus{Code: ws.ExitStatus()}
}

// stopLingering makes wait return even while orphans live.
func (c *child) stopLingering() { c.once.Do(func() { close(c.stop) }) }
