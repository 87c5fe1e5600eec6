// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exec is a private network with one program in it, or about to be. From
// [StartExec] to [Exec.Close] it also owns this process's handling of INT, QUIT,
// TERM, HUP, USR1 and USR2.
type Exec struct {
	log      *slog.Logger
	device   Device
	stubUDP  []net.PacketConn
	stubTCP  []net.Listener
	ports    []HostPort
	warnings []string
	rootless bool
	index    int // of the TUN, inside
	hasIPv6  bool
	rt       *rtnl // inside
	netns    nsID

	control *net.UnixConn
	child   *child
	signals *signals
	once    sync.Once // Close

	mu     sync.Mutex
	ipv6   bool                    // the default route stands
	mesh6  map[netip.Addr]struct{} // routes of SetMesh6
	closed bool
}

// StartExec makes the private network. The program does not run yet: the caller
// now carries the packets of [Exec.Device], and calls [Exec.Start] when the
// network is ready to serve it.
//
// Errors are [*ExecError], with a hint where the cause is known, or
// [*Interrupted]. When ctx ends, what was begun is undone; later it has no effect.
//
// The program is a child of this process and may end at any time: see [Exec.Done].
func StartExec(ctx context.Context, cfg ExecConfig) (*Exec, error) {
	p, env, err := newPlan(&cfg)
	if err != nil {
		return nil, err
	}
	sock, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, setupError("namespaces", os.NewSyscallError("socketpair", err))
	}
	e := &Exec{log: cfg.Logger, mesh6: make(map[netip.Addr]struct{}), ipv6: p.IPv6}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.control, err = unixConn(sock[0]); err != nil {
		unix.Close(sock[1])
		return nil, setupError("namespaces", err)
	}
	e.signals = watchSignals()
	e.child, err = startChild(sock[1], cfg.Args, env, cfg.Linger)
	unix.Close(sock[1])
	if err != nil {
		e.control.Close()
		e.signals.stop()
		return nil, e.interruptedOr(err)
	}
	e.rootless = e.child.rootless
	e.signals.forwardTo(e.child)
	if err := e.setUp(ctx, p); err != nil {
		e.Close()
		return nil, e.interruptedOr(err)
	}
	e.warnings = append(e.warnings, sudoHint(&cfg)...)
	return e, nil
}

// newPlan validates cfg and makes the plan and the program's environment.
func newPlan(cfg *ExecConfig) (*plan, []string, error) {
	if len(cfg.Args) == 0 || cfg.Args[0] == "" {
		return nil, nil, &ExecError{Stage: stageExec, Code: ExitNotFound, Err: errors.New("no program is named")}
	}
	if n := len(cfg.HostPorts); n > maxHostPorts {
		return nil, nil, setupError("sockets", fmt.Errorf("%d host ports: at most %d", n, maxHostPorts))
	}
	p := &plan{
		Parent:     os.Getpid(),
		Name:       deviceName,
		MTU:        cfg.MTU,
		IPv6:       cfg.IPv6,
		ResolvConf: cfg.Resolv.private(ResolverAddr),
		Stubs:      cfg.Resolv.Loopback(),
		HostPorts:  cfg.HostPorts,
		KeepCaps:   os.Geteuid() == 0,
	}
	if p.MTU == 0 {
		p.MTU = DefaultMTU
	}
	env := cfg.Env
	if cfg.User != "" {
		u, err := lookupUser(cfg.User)
		if err != nil {
			return nil, nil, &ExecError{Stage: "user", Code: ExitSetup, Err: err}
		}
		if os.Geteuid() != 0 {
			return nil, nil, &ExecError{
				Stage: "user", Code: ExitSetup, Err: fmt.Errorf("become %s: %w", cfg.User, unix.EPERM),
				Hint: "--user needs root: sudo nasp-tun exec --user " + cfg.User + " -- ...",
			}
		}
		p.Login = &u.login
		p.KeepCaps = u.login.UID == 0
		env = u.environ(env)
	}
	return p, env, nil
}

// setUp sends the plan and takes what stage 2 made.
func (e *Exec) setUp(ctx context.Context, p *plan) error {
	text, err := json.Marshal(p)
	if err != nil {
		return setupError("plan", err)
	}
	defer e.cancelWith(ctx)()
	if _, err := e.control.Write(text); err != nil {
		return e.stage2Gone(ctx, err)
	}
	r, fds, err := receiveReport(e.control)
	if err != nil {
		return e.stage2Gone(ctx, err)
	}
	if r.Stage != "" {
		closeAll(fds)
		return e.child.refusal(r)
	}
	if want := 2 + r.UDP + r.TCP + len(p.HostPorts); len(fds) != want {
		closeAll(fds)
		return setupError("sockets", fmt.Errorf("received %d descriptors of %d", len(fds), want))
	}
	e.device = r.Device
	e.device.FD = fds[0]
	e.rt = &rtnl{fd: fds[1]}
	e.index, e.hasIPv6, e.netns = r.Index, r.HasIPv6, r.NetNS
	e.warnings = append(e.warnings, r.Warnings...)
	if err := e.adopt(fds[2:], r, p.HostPorts); err != nil {
		return setupError("sockets", err)
	}
	return nil
}

// cancelWith makes reads and writes on the control socket end with ctx; the
// function that it returns ends that.
func (e *Exec) cancelWith(ctx context.Context) (stop func()) {
	release := context.AfterFunc(ctx, func() { _ = e.control.SetDeadline(time.Unix(1, 0)) })
	return func() { release() }
}

// stage2Gone makes an error of a control socket that failed.
func (e *Exec) stage2Gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return setupError("namespaces", context.Cause(ctx))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		<-e.child.ended
		err = fmt.Errorf("the set-up process ended: %v", e.child.status)
	}
	return setupError("namespaces", err)
}

// adopt wraps the sockets bound inside, whose order stage.sockets made.
func (e *Exec) adopt(fds []int, r *report, ports []uint16) error {
	var errs []error
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "inside")
		var err error
		if i < r.UDP {
			var c net.PacketConn
			if c, err = net.FilePacketConn(f); err == nil {
				e.stubUDP = append(e.stubUDP, c)
			}
		} else {
			var l net.Listener
			if l, err = net.FileListener(f); err == nil && i < r.UDP+r.TCP {
				e.stubTCP = append(e.stubTCP, l)
			} else if err == nil {
				e.ports = append(e.ports, HostPort{ports[i-r.UDP-r.TCP], l})
			}
		}
		errs = append(errs, err, f.Close())
	}
	return errors.Join(errs...)
}

// Device returns the program's TUN. The caller owns the descriptor from the first
// call on, and reads and writes packets until it closes it. No event tells that
// the program ended: only [Exec.Done] does.
func (e *Exec) Device() Device {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.device
	e.device.FD = -1
	return d
}

// Stubs returns sockets bound to port 53 of those loopback addresses that the
// host's resolv.conf names. The caller answers DNS on them; Close closes them.
func (e *Exec) Stubs() ([]net.PacketConn, []net.Listener) { return e.stubUDP, e.stubTCP }

// HostPorts returns the listeners for ExecConfig.HostPorts. The caller connects
// what they accept to the same port of its own loopback; Close closes them.
func (e *Exec) HostPorts() []HostPort { return e.ports }

// Warnings returns what the user should know about this set-up.
func (e *Exec) Warnings() []string { return e.warnings }

// Rootless reports whether the program runs in a user namespace.
func (e *Exec) Rootless() bool { return e.rootless }

// PID returns the program's process number.
func (e *Exec) PID() int { return e.child.pid }

// Start runs the program, and returns nil as soon as it has replaced stage 2.
func (e *Exec) Start(ctx context.Context) error {
	defer e.cancelWith(ctx)()
	e.child.running.Store(true)
	if _, err := e.control.Write([]byte(goMessage)); err != nil {
		return e.interruptedOr(e.stage2Gone(ctx, err))
	}
	r, fds, err := receiveReport(e.control)
	closeAll(fds)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	if err != nil {
		return e.interruptedOr(e.stage2Gone(ctx, err))
	}
	return e.child.refusal(r)
}

// Done is closed when the program, or before Start the process that waits to
// become it, has ended.
func (e *Exec) Done() <-chan struct{} { return e.child.ended }

// Wait waits until the program has ended, with Linger also until those have that it
// left behind. After a signal that ended the set-up it returns that signal.
func (e *Exec) Wait() ExitStatus {
	<-e.child.done
	s := e.child.status
	if sig := e.signals.interrupted(); sig != 0 {
		s = ExitStatus{Signal: sig}
	}
	s.Orphans = e.netns.count()
	return s
}

// Signal sends sig to the program, if it has not ended.
func (e *Exec) Signal(sig syscall.Signal) error { return e.child.kill(sig) }

// Close ends what is left: it kills a program that still runs and closes what the
// caller has not taken over. It waits for everything that StartExec began.
func (e *Exec) Close() error {
	var errs []error
	e.once.Do(func() {
		e.signals.stop()
		_ = e.child.kill(unix.SIGKILL)
		e.child.stopLingering()
		errs = append(errs, e.control.Close())
		e.child.wg.Wait()
		if e.child.linger {
			_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		}
		for _, c := range e.stubUDP {
			errs = append(errs, ignoreClosed(c.Close()))
		}
		for _, l := range e.stubTCP {
			errs = append(errs, ignoreClosed(l.Close()))
		}
		for _, p := range e.ports {
			errs = append(errs, ignoreClosed(p.Listener.Close()))
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.closed = true
		if e.rt != nil {
			errs = append(errs, e.rt.close())
			if e.device.FD >= 0 {
				errs = append(errs, unix.Close(e.device.FD))
			}
		}
	})
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// interruptedOr returns err unless a signal explains it: a Ctrl-C kills stage 2
// too, perhaps before we have seen it, and then nobody wants to read that it is gone.
func (e *Exec) interruptedOr(err error) error {
	if err == nil {
		return nil
	}
	if sig := e.signals.interrupted(); sig != 0 {
		return &Interrupted{sig}
	}
	if e.child == nil {
		return err
	}
	select {
	case <-e.child.ended:
		if sig := e.child.status.Signal; slices.Contains(forwarded, os.Signal(sig)) {
			return &Interrupted{sig}
		}
	default:
	}
	return err
}

func setupError(stage string, err error) *ExecError {
	return &ExecError{Stage: stage, Code: ExitSetup, Err: err}
}
