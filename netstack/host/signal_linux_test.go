// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A terminal is a pseudo-terminal with a program on it.
type terminal struct {
	t      *testing.T
	master *os.File
	out    *bufio.Scanner
	events *bufio.Scanner // of miniJob
	orders *os.File
	job    int // pid of the job, the mini-exec
}

// openTerminal runs a job in the foreground of a new terminal, in world w.
func openTerminal(t *testing.T, w world, job string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	slave := openSlave(t, master)
	events, orders := pipes(t)
	cmd := w.command(t, "exec $AS $X mini-job "+job)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.ExtraFiles = []*os.File{events[1], orders[0]}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{slave, events[1], orders[0]} {
		f.Close()
	}
	t.Cleanup(func() {
		master.Close() // the terminal hangs up
		orders[1].Close()
		_ = cmd.Wait()
		events[0].Close()
	})
	term := &terminal{t: t, master: master, out: bufio.NewScanner(master), events: bufio.NewScanner(events[0]), orders: orders[1]}
	pid, err := strconv.Atoi(strings.TrimPrefix(term.event(), "pid "))
	if err != nil {
		t.Fatal(err)
	}
	term.job = pid
	return term
}

func openSlave(t *testing.T, master *os.File) *os.File {
	t.Helper()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	if err := os.Chmod(name, 0o666); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return slave
}

func pipes(t *testing.T) (a, b [2]*os.File) {
	t.Helper()
	for _, p := range []*[2]*os.File{&a, &b} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p[0], p[1] = r, w
	}
	return a, b
}

// see waits for a line of output; what the terminal echoes of our keys is skipped.
func (term *terminal) see(want string) {
	term.t.Helper()
	for term.out.Scan() {
		switch got := strings.TrimSpace(term.out.Text()); {
		case strings.HasSuffix(got, want):
			return
		case strings.HasPrefix(got, "got ") || strings.Contains(got, "]got "):
			term.t.Errorf("saw %q before %q", got, want)
		}
	}
	term.t.Fatalf("the terminal ended before %q", want)
}

func (term *terminal) event() string {
	term.t.Helper()
	if !term.events.Scan() {
		term.t.Fatal("no more events of the job")
	}
	return term.events.Text()
}

func (term *terminal) want(event string) {
	term.t.Helper()
	if got := term.event(); got != event {
		term.t.Fatalf("job: %s, want %s", got, event)
	}
}

func (term *terminal) press(keys string) {
	term.t.Helper()
	if _, err := io.WriteString(term.master, keys); err != nil {
		term.t.Fatal(err)
	}
}

func (term *terminal) foreground() { fmt.Fprintln(term.orders, "fg") }

const counting = `/mnt/x mini-exec -- /mnt/x probe signals`

// TestKeysArriveOnce: the terminal tells the whole group, and we nothing more. A
// signal told twice would arrive before the next, since we pass them on in order.
func TestKeysArriveOnce(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		term := openTerminal(t, w, counting)
		term.see("ready")
		term.press("\x03")
		term.see("got SIGINT")
		term.signal(unix.SIGUSR1)
		term.see("got SIGUSR1")
		term.press("\x1c")
		term.see("got SIGQUIT")
		term.signal(unix.SIGUSR2)
		term.see("got SIGUSR2")
		if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 20}); err != nil {
			t.Fatal(err)
		}
		term.see("got SIGWINCH")
		term.signal(unix.SIGHUP)
		term.see("got SIGHUP")
		term.signal(unix.SIGTERM)
		term.see("got SIGTERM")
		term.want("ended exit status 0")
	})
}

// signal sends one to the mini-exec alone.
func (term *terminal) signal(sig syscall.Signal) {
	term.t.Helper()
	if err := unix.Kill(term.job, sig); err != nil {
		term.t.Fatal(err)
	}
}

func TestStopTenTimes(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		term := openTerminal(t, w, counting)
		term.see("ready")
		for i := range 10 {
			term.press("\x1a")
			term.want("stopped SIGTSTP")
			term.foreground()
			word := fmt.Sprint("word", i)
			term.press(word + "\n")
			term.see("heard " + word)
		}
		term.press("\x03")
		term.see("got SIGINT")
		term.signal(unix.SIGTERM)
		term.see("got SIGTERM")
		term.want("ended exit status 0") // and not one more stop
	})
}

// TestSuspend: a program that stops itself alone, as an inner shell does.
func TestSuspend(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		term := openTerminal(t, w, `/mnt/x mini-exec -- /mnt/x probe suspend`)
		term.want("stopped SIGSTOP")
		term.foreground()
		term.see("resumed")
		term.want("ended exit status 3")
	})
}

// TestSignalsWithoutTerminal: nobody else tells the program.
func TestSignalsWithoutTerminal(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		cmd, out := startJob(t, w, "exec $AS setsid /mnt/x mini-exec -- /mnt/x probe signals")
		expect(t, out, "ready")
		for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM} {
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			expect(t, out, "got "+unix.SignalName(sig))
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestInterruptedSetUp: a signal before the program runs ends it all, without a word.
func TestInterruptedSetUp(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
			cmd, out := startJob(t, w, `exec $AS setsid /mnt/x mini-exec --hold -- echo never`)
			expect(t, out, "holding")
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(out)
			if len(rest) > 0 || err != nil {
				t.Errorf("%v: said %q, %v", sig, rest, err)
			}
			_ = cmd.Wait()
			if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != sig {
				t.Errorf("%v: ended with %s", sig, exitWords(ws))
			}
		}
	})
}

// TestCtrlCDuringSetUp: stage 2 is in the terminal's group as well, and may die first.
func TestCtrlCDuringSetUp(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		term := openTerminal(t, w, `/mnt/x mini-exec --hold -- echo never`)
		term.see("holding")
		term.press("\x03")
		term.want("ended killed by signal 2")
	})
}

// TestNohup: what the caller ignores, the program ignores, and we leave alone.
func TestNohup(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		cmd := w.command(t, `exec $AS setsid env --ignore-signal=HUP /mnt/x mini-exec -- sh -c 'echo ready; read x; exit 5'`)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		expect(t, bufio.NewReader(out), "ready")
		if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		in.Close()
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 5 {
			t.Errorf("ended with %v", cmd.ProcessState)
		}
	})
}

// startJob starts a script and gives its output line by line.
func startJob(t *testing.T, w world, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := w.command(t, script)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

func expect(t *testing.T, out *bufio.Reader, want string) {
	t.Helper()
	got, err := out.ReadString('\n')
	if strings.TrimSpace(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}
