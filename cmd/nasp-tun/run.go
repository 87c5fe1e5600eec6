// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nasp-tun/nasp-tun/mesh"
	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

const (
	// joinTimeout bounds the time from the enrolment to an identity and a whole
	// configuration. Who starts CMD by hand wants the reason within the
	// patience of a person; istiod, when it is well, needs less than a second.
	joinTimeout = 15 * time.Second

	// drainTimeout bounds how long connections may live on after CMD: what it
	// wrote last may still be under way when it ends. Most end at once, since
	// the kernel closes CMD's sockets.
	drainTimeout = 5 * time.Second
)

// A tunnel is one program in the mesh: the program's private network, and the
// mesh that answers to all that the program sends there.
type tunnel struct {
	// Set by newTunnel, then read-only.
	cfg      *Config
	args     []string
	enrol    enrolment
	logs     *logs
	log      *slog.Logger
	stderr   io.Writer
	started  time.Time
	name     string
	dialer   *host.Dialer
	names    *names
	loopback *loopback
	registry *prometheus.Registry

	// Set by run, in this order, each before anything asks for it.
	world  *host.Exec
	mesh   *mesh.Mesh
	device host.Device
	flows  *flows
	stack  *netstack.Stack
	told   []string // warnings
}

func newTunnel(cfg *Config, logs *logs, stdin io.Reader, stderr io.Writer, args []string) (t *tunnel, err error) {
	t = &tunnel{
		cfg: cfg, args: args, logs: logs, log: logs.logger, stderr: stderr,
		started: time.Now(), name: cfg.Observe.Name, dialer: &host.Dialer{}, registry: newRegistry(),
	}
	if t.enrol, err = newEnrolment(&cfg.Enrol, t.dialer.DialContext, stdin, t.log); err != nil {
		return nil, err
	}
	if t.name == "" {
		t.name = sessionName(args[0])
	}
	t.names = newNames(t.dialer, cfg.Exec.DNSPassthrough)
	t.loopback = &loopback{dial: t.dialer.DialContext, log: t.log}
	return t, nil
}

// run is the whole program on one page. CMD's private network comes first,
// since that is refused at once or not at all; then the enrolment, an identity
// and a whole configuration; then the stack that carries packets between the
// two; and only then may CMD run. There is no way through here on which CMD
// runs without the tunnel.
//
// It ends in reverse: CMD is gone, what it wrote last is carried to its end, the
// services stop, and the device goes last.
func (t *tunnel) run(ctx context.Context) (status host.ExitStatus, err error) {
	t.world, err = host.StartExec(ctx, t.execConfig())
	if err != nil {
		return status, err
	}
	defer func() { err = errors.Join(err, t.world.Close()) }()

	s := newServices(ctx, t.log)
	defer s.stop()

	if err := t.join(s); err != nil {
		return status, err
	}
	if err := t.serve(s); err != nil {
		return status, err
	}
	t.warn()
	t.logs.settle()
	if err := t.world.Start(ctx); err != nil {
		return status, err
	}
	status = t.world.Wait()
	t.drain(ctx)
	t.sayOrphans(status)
	return status, nil
}

func (t *tunnel) execConfig() host.ExecConfig {
	x := &t.cfg.Exec
	env := t.cfg.env.list
	if x.NoProxyEnv {
		env = host.WithoutProxy(env)
	}
	return host.ExecConfig{
		Args: t.args, Env: env, User: x.User, HostPorts: x.HostPorts, Linger: x.Linger,
		IPv6: t.dialer.HasIPv6(), Resolv: t.names.resolvers.Config(), Logger: t.log.With("component", "exec"),
	}
}

// join makes this node a member of the mesh, or says within joinTimeout which
// layer did not let it.
func (t *tunnel) join(s *services) error {
	ctx, cancel := context.WithTimeout(s.ctx, joinTimeout)
	defer cancel()
	cfg, err := meshConfig(ctx, t.enrol, &t.cfg.Enrol)
	if err != nil {
		return err
	}
	cfg.Dial = t.dialer.DialContext
	cfg.Lookup = t.names.lookup
	cfg.Forward = t.names.forward
	cfg.Search = t.names.resolvers.Config().Search
	cfg.LocalNames = t.localNames()
	cfg.CaptureDNS = true
	cfg.OutsideAllow = t.cfg.Exec.Outside == "allow"
	cfg.Version = readBuildInfo().Version
	cfg.Logger = t.log
	cfg.Registerer = t.registry
	cfg.Access = t.logs.access
	cfg.AccessFormat = t.cfg.Observe.AccessLogFormat
	t.mesh, err = mesh.New(cfg)
	if err != nil {
		return err
	}
	s.vital("enrolment", t.enrol.Run)
	s.vital("mesh", t.mesh.Run)
	return t.waitReady(ctx, cfg.Istiod)
}

// serve starts everything that CMD's traffic needs, and what looks in.
func (t *tunnel) serve(s *services) (err error) {
	t.device = t.world.Device()
	t.flows = &flows{mesh: t.mesh}
	if !t.cfg.Exec.NoHostLoopback {
		t.flows.loopback = t.loopback
	}
	t.stack, err = netstack.New(netstack.Config{
		Device: netstack.Device{
			FD: t.device.FD, MTU: uint32(t.device.MTU), VnetHdr: t.device.VnetHdr, TSO: t.device.TSO,
		},
		Handler: t.flows,
		Logger:  t.log.With("component", "netstack"),
	})
	if err != nil {
		return err
	}
	s.vital("netstack", t.stack.Run)
	if err := t.registry.Register(&stackCollector{t.stack.Stats}); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	// The host's own resolver addresses, which stage 2 bound inside, for
	// programs that know them from elsewhere than resolv.conf.
	packets, listeners := t.world.Stubs()
	for _, p := range packets {
		s.assist("dns", func(ctx context.Context) error { return t.mesh.DNS().ServePacketConn(ctx, p) })
	}
	for _, l := range listeners {
		s.assist("dns", func(ctx context.Context) error { return t.mesh.DNS().ServeListener(ctx, l) })
	}
	for _, p := range t.world.HostPorts() {
		s.assist("host port", func(ctx context.Context) error { return t.loopback.serveHostPort(ctx, p.Listener, p.Port) })
	}
	s.assist("ipv6", t.followIPv6)
	return t.observe(s)
}

// drain gives what CMD wrote last the time to arrive.
func (t *tunnel) drain(ctx context.Context) {
	limit := time.NewTimer(drainTimeout)
	defer limit.Stop()
	select {
	case <-t.flows.drain():
	case <-limit.C:
	case <-ctx.Done():
	}
}

// services are the parts of a tunnel that run beside CMD.
type services struct {
	ctx    context.Context // ends when stop is called or a vital part fails
	cancel context.CancelFunc
	group  *errgroup.Group
	log    *slog.Logger
}

func newServices(ctx context.Context, log *slog.Logger) *services {
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	return &services{ctx, cancel, g, log}
}

// errEnded is the failure of a vital part that ends without one.
var errEnded = errors.New("ended by itself")

// vital runs a part without which there is no tunnel. When it fails, all others
// end too, so that CMD sees no network rather than half of one; the log says why.
func (s *services) vital(name string, run func(context.Context) error) {
	s.group.Go(func() error {
		err := run(s.ctx)
		if s.ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errEnded
		}
		s.log.Error("the tunnel is broken: no network from here on", "part", name, "err", err)
		return err
	})
}

// assist runs a part that CMD can do without.
func (s *services) assist(name string, run func(context.Context) error) {
	s.group.Go(func() error {
		if err := run(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("a part has failed", "part", name, "err", err)
		}
		return nil
	})
}

// stop ends all parts and waits for them.
func (s *services) stop() {
	s.cancel()
	_ = s.group.Wait() // it was logged when it happened
}
