// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exit ends this process as the program ended, by the same signal too, so that a
// caller sees what it would have seen without us. It does not return.
func (s ExitStatus) Exit() {
	if s.Signal != 0 {
		dieOf(s.Signal)
	}
	os.Exit(s.ShellCode())
}

// dieOf sends this process a signal with the kernel's own action: Go's would print
// the goroutines for some. It returns only if the signal does not kill.
func dieOf(sig syscall.Signal) {
	// One core file, the program's own, is enough. A limit of 0 does not keep a
	// core from a pipe such as systemd-coredump; not being dumpable does.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	signal.Reset(sig)
	runtime.LockOSThread()
	// struct sigaction of the kernel, all zero: SIG_DFL, no flags, an empty mask.
	var action [4]uint64
	const maskSize = 8
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, maskSize, 0, 0)
	var set unix.Sigset_t
	const bits = 8 * int(unsafe.Sizeof(set.Val[0]))
	set.Val[(int(sig)-1)/bits] |= 1 << ((int(sig) - 1) % bits)
	_ = unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil)
	// To this thread: the signal is then taken before the call returns.
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), sig)
}
