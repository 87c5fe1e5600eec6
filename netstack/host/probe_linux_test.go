// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// probe is the program under test: it does one thing and prints what it saw.
func probe(args []string) int {
	switch args[0] {
	case "args": // its arguments, and one variable, byte by byte
		fmt.Printf("%q %q\n", args[1:], os.Getenv("PROBE"))
	case "dial": // network, address: what the peer says, or the error
		fmt.Println(dialAndRead(args[1], args[2]))
	case "signals":
		return countSignals(args[1:])
	case "suspend":
		return suspendSelf()
	case "survivor": // outlives its parent
		survive()
	case "cutoff":
		fmt.Println(cutOff())
	case "daemon": // counts connections to the given sockets on stdout
		return fakeDaemon(args[1:])
	case "marked":
		d := Dialer{Mark: MarkOwn}
		_, err := d.DialContext(context.Background(), "tcp", args[1])
		fmt.Println(err)
	case "capture": // with a state directory
		fmt.Println(tryCapture(args[1]))
	case "watch6":
		return watch6()
	case "mount":
		return tryMount(args[1], args[2])
	case "die":
		return dieBy(args[1])
	default:
		fmt.Fprintln(os.Stderr, "unknown probe", args[0])
		return 2
	}
	return 0
}

func dialAndRead(network, address string) string {
	c, err := net.Dial(network, address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// countSignals prints each signal that arrives and echoes lines, until SIGTERM or,
// as the arguments say, another signal.
func countSignals(last []string) int {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	words := make(chan string)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			words <- in.Text()
		}
	}()
	fmt.Println("ready")
	for {
		select {
		case sig := <-ch:
			name := unix.SignalName(sig.(syscall.Signal))
			fmt.Println("got", name)
			if name == "SIGTERM" || len(last) > 0 && name == last[0] {
				return 0
			}
		case word := <-words:
			fmt.Println("heard", word)
		}
	}
}

// suspendSelf stops this process alone, in a group of its own as an inner shell's.
func suspendSelf() int {
	if err := unix.Setpgid(0, 0); err != nil {
		return 1
	}
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP); err != nil {
		return 1
	}
	fmt.Println("resumed")
	return 3
}

// survive says what it finds after its parent's death.
func survive() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	fmt.Println("ready")
	<-term
	fmt.Println(cutOff())
}

// cutOff connects until that fails; while a network is there it does not.
func cutOff() error {
	for {
		c, err := net.Dial("udp", "10.96.0.10:53")
		if err != nil {
			return err
		}
		c.Close()
	}
}

// fakeDaemon listens on unix sockets, runs what follows "--", and then prints how
// many connections came.
func fakeDaemon(args []string) int {
	asked := make(chan struct{}, 1024)
	for len(args) > 0 && args[0] != "--" {
		l, err := net.Listen("unix", args[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := os.Chmod(args[0], 0o777); err != nil {
			return 1
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				asked <- struct{}{}
				c.Close()
			}
		}()
		args = args[1:]
	}
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("asked", len(asked))
	return 0
}

// tryMount mounts over a symlink to the file "target" beside it, one way or the other.
func tryMount(way, path string) int {
	at, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	mount := mountDetached
	if way == "bound" {
		mount = mountBound
	}
	if err := mount(at, []byte("new text\n")); err != nil {
		fmt.Println(err)
		return 1
	}
	show := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			text = append([]byte(err.Error()), '\n')
		}
		os.Stdout.Write(text)
	}
	show(path)
	show(filepath.Dir(path) + "/target")
	if _, err := os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		fmt.Println(errors.Unwrap(err))
	}
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// watch6 prints what WatchIPv6 says while the route comes and goes.
func watch6() int {
	ctx, cancel := context.WithCancel(context.Background())
	steps := []string{"link set lo up", "-6 route add default dev lo", "-6 route del default dev lo"}
	next := func() {
		if len(steps) == 0 {
			cancel()
			return
		}
		if out, err := exec.Command("ip", strings.Fields(steps[0])...).CombinedOutput(); err != nil {
			fmt.Println(steps[0], err, string(out))
		}
		steps = steps[1:]
	}
	next()
	var d Dialer
	err := d.WatchIPv6(ctx, func(on bool) {
		fmt.Println(on)
		next()
	})
	fmt.Println("ended", err)
	return 0
}

// dieBy ends this process by the named signal with the kernel's own action.
func dieBy(name string) int {
	dieOf(unix.SignalNum(name))
	return 1
}

// miniJob is the part of a shell that runs one job in the foreground: it prints
// "stopped" and "ended N" on descriptor 3, and continues the job for each line on
// descriptor 4.
func miniJob(args []string) int {
	events, orders := os.NewFile(3, "events"), bufio.NewScanner(os.NewFile(4, "orders"))
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	signal.Ignore(unix.SIGTTOU) // a shell may take the terminal back
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Foreground: true, Ctty: 0},
	})
	if err != nil {
		fmt.Fprintln(events, "error", err)
		return 1
	}
	fmt.Fprintln(events, "pid", p.Pid)
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(p.Pid, &ws, unix.WUNTRACED, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			return 1
		}
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, unix.Getpgrp())
		if !ws.Stopped() {
			fmt.Fprintln(events, "ended", strings.TrimSpace(exitStatus(ws).String()))
			return 0
		}
		fmt.Fprintln(events, "stopped", unix.SignalName(ws.StopSignal()))
		if !orders.Scan() {
			return 1
		}
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, p.Pid)
		_ = unix.Kill(-p.Pid, unix.SIGCONT)
	}
}

func tryCapture(dir string) error {
	s, err := OpenState(dir, "test")
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := OpenCapture(CaptureConfig{State: s})
	if err != nil {
		return err
	}
	return c.Close()
}
