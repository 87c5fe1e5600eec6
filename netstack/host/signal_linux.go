// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that a caller sends to make a program do something.
// SIGTSTP, SIGCONT and SIGWINCH reach the program by the terminal, or are not for
// us at all.
var forwarded = []os.Signal{
	unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2,
}

// signals takes the signals sent to this process to the program.
type signals struct {
	ch   chan os.Signal
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	first atomic.Int32 // the signal that ended the set-up
}

// watchSignals begins to collect. Those that are ignored stay so (nohup): Notify
// would undo that, and the program is to inherit it.
func watchSignals() *signals {
	s := &signals{ch: make(chan os.Signal, 16), quit: make(chan struct{})}
	for _, sig := range forwarded {
		if !signal.Ignored(sig) {
			signal.Notify(s.ch, sig)
		}
	}
	return s
}

// forwardTo begins to pass them on to c.
func (s *signals) forwardTo(c *child) {
	s.wg.Go(func() {
		for {
			select {
			case <-s.quit:
				return
			case got := <-s.ch:
				if sig, ok := got.(syscall.Signal); ok {
					s.pass(sig, c)
				}
			}
		}
	})
}

func (s *signals) pass(sig syscall.Signal, c *child) {
	if !c.running.Load() {
		// Nobody has seen the program yet, so it need not be asked.
		s.first.CompareAndSwap(0, int32(sig))
		_ = c.kill(unix.SIGKILL)
		return
	}
	select {
	case <-c.ended:
		c.stopLingering()
		return
	default:
	}
	if (sig == unix.SIGINT || sig == unix.SIGQUIT) && inForeground() {
		return // the terminal told the whole group; a second one means "at once"
	}
	if errors.Is(c.kill(sig), os.ErrProcessDone) {
		c.stopLingering()
	}
}

// inForeground reports whether our process group has the terminal, so that a key
// reaches the program without us.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// interrupted returns the signal that ended the set-up, or 0.
func (s *signals) interrupted() syscall.Signal {
	return syscall.Signal(s.first.Load())
}

// stop gives the signals back.
func (s *signals) stop() {
	s.once.Do(func() {
		signal.Stop(s.ch)
		close(s.quit)
		s.wg.Wait()
	})
}
