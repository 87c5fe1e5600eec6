// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopLimit bounds the wait for a process after SIGTERM. A pilot-agent drains
// for longer, and there is nothing in the lab that deserves it.
const stopLimit = 3 * time.Second

// A process is one that runs or is to run. It leads a process group, so that
// the Envoy of a pilot-agent ends with it.
type process struct {
	Name, Netns, Dir string
	Args, Env        []string
	PID              int
	Started          uint64 // in clock ticks since boot: tells it from another that got its pid
}

// running says whether the process of this pid is still the one started.
func (p *process) running() bool {
	started, zombie, err := processStart(p.PID)
	return err == nil && !zombie && p.PID != 0 && started == p.Started
}

// processStart reads the start time and state from /proc/PID/stat. The name
// of the program, in parentheses, may hold anything.
func processStart(pid int) (started uint64, zombie bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const stateField, startField = 0, 19 // of those after the name, proc_pid_stat(5)
	if len(fields) <= startField {
		return 0, false, fmt.Errorf("read stat of %d: %d fields", pid, len(fields))
	}
	started, err = strconv.ParseUint(fields[startField], 10, 64)
	return started, fields[stateField] == "Z", err
}

// start runs a process unless it runs already.
func (l *Lab) start(p process) error {
	if old := l.process(p.Name); old != nil && old.running() {
		return nil
	}
	log, err := os.OpenFile(l.LogFile(p.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("ip", append([]string{"netns", "exec", p.Netns}, p.Args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.Dir, log, log
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.run()}, p.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.PID = cmd.Process.Pid
	if p.Started, _, err = processStart(p.PID); err != nil {
		return err
	}
	// It outlives this program, which therefore does not wait for it.
	if err := cmd.Process.Release(); err != nil {
		return err
	}
	l.state.Processes = slices.DeleteFunc(l.state.Processes, func(o *process) bool { return o.Name == p.Name })
	l.state.Processes = append(l.state.Processes, &p)
	return l.save()
}

func (l *Lab) process(name string) *process {
	for _, p := range l.state.Processes {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// stop ends a process and its children, gently at first.
func (p *process) stop(ctx context.Context) error {
	if !p.running() {
		return nil
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := syscall.Kill(-p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop %s: %w", p.Name, err)
		}
		err := Poll(ctx, stopLimit, "the end of "+p.Name, func(context.Context) error {
			if groupAlive(p.PID) {
				return errors.New("still running")
			}
			return nil
		})
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("stop %s: process group %d does not end", p.Name, p.PID)
}

// groupAlive says whether any process of a group has not ended. Zombies do
// not count: nobody may be there to collect them.
func groupAlive(group int) bool {
	if syscall.Kill(-group, 0) != nil {
		return false
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if g, err := syscall.Getpgid(pid); err != nil || g != group {
			continue
		}
		if _, zombie, err := processStart(pid); err == nil && !zombie {
			return true
		}
	}
	return false
}

// Restart ends a process of the lab and starts it again, and waits until it
// is ready.
func (l *Lab) Restart(ctx context.Context, name string) error {
	if err := l.Stop(ctx, name); err != nil {
		return err
	}
	return l.Start(ctx, name)
}

// RestartWith restarts a process with variables added to its environment, or
// changed in it, and returns what undoes that.
func (l *Lab) RestartWith(ctx context.Context, name string, env ...string) (undo func(context.Context) error, err error) {
	p := l.process(name)
	if p == nil {
		return nil, fmt.Errorf("restart %s: the lab has no such process", name)
	}
	before := p.Env
	with := func(ctx context.Context, env []string) error {
		if err := p.stop(ctx); err != nil {
			return err
		}
		next := *p
		next.Env = env
		if err := l.start(next); err != nil {
			return err
		}
		p = l.process(name)
		return l.awaitReady(ctx, name)
	}
	undo = func(ctx context.Context) error { return with(ctx, before) }
	return undo, with(ctx, slices.Concat(before, env)) // of two the last holds
}

// Stop ends a process of the lab, which stays known; Start brings it back.
func (l *Lab) Stop(ctx context.Context, name string) error {
	p := l.process(name)
	if p == nil {
		return fmt.Errorf("stop %s: the lab has no such process", name)
	}
	return p.stop(ctx)
}

// Start runs a stopped process of the lab again and waits until it is ready.
func (l *Lab) Start(ctx context.Context, name string) error {
	p := l.process(name)
	if p == nil {
		return fmt.Errorf("start %s: the lab has no such process", name)
	}
	if err := l.start(*p); err != nil {
		return err
	}
	return l.awaitReady(ctx, name)
}
