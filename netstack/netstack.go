// SPDX-License-Identifier: Apache-2.0

// Package netstack turns the packets of one TUN device into flows: TCP
// connections whose handshake is still pending, UDP sessions, and the question
// whether somebody answers a ping.
//
// A [Stack] is a gVisor network stack that owns every address. It is made
// from a [Device], a file descriptor and what is true of it, and calls a
// [Handler] for each flow:
//
//	kernel ──TUN──> tunlink ──> gVisor ──> forwarders ──> Handler.ServeTCP(ctx, flow)
//
// # A connection tells the truth
//
// When a SYN arrives the Handler is called and the client waits. The Handler
// finds out whether the destination can be reached, and only then calls
// [TCPFlow.Accept], which completes the handshake, or [TCPFlow.Reject], which
// refuses it with a reset. So a refused service looks refused, and a slow one
// slow. A reset from the client reaches the Handler through
// [TCPConn.OnReset], and [TCPConn.Abort] sends one to the client: neither is
// turned into an orderly end. UDP to nobody is answered with port unreachable,
// a ping to nobody with host unreachable.
//
// # Bounds
//
// Whatever a client can make this package allocate is bounded, in total and,
// where one client could starve the others, for each source address. The
// limits are the Default constants; [Config] can change them and [Stats]
// counts what they refused.
//
// # Life
//
// [New] starts nothing. [Stack.Run] delivers packets until its context ends;
// then it resets what is left, waits for every handler and every goroutine of
// the stack, and closes the device. [Stack.Drain] before that lets flows end
// by themselves.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/nasp-tun/nasp-tun/netstack/tunlink"
)

const (
	// stopTimeout bounds the end of Run. Handlers have had their context
	// cancelled and their connections reset by then, so that one which takes
	// longer hangs.
	stopTimeout = 10 * time.Second

	// cutInterval is how often the end of Run resets endpoints again: a
	// handler that is in Accept at that moment registers its endpoint late.
	cutInterval = 20 * time.Millisecond

	// sweepInterval is the resolution of idle limits and of the recognition
	// of clients that gave up, which are of seconds.
	sweepInterval = time.Second
)

// A Device is a TUN device as an open descriptor.
type Device struct {
	FD      int // owned by the Stack from New on, also when New fails
	MTU     uint32
	VnetHdr bool // opened with IFF_VNET_HDR
	TSO     bool // TUNSETOFFLOAD with CSUM, TSO4 and TSO6 succeeded
}

// A Handler serves the flows that a Stack takes off its device.
//
// ServeTCP and ServeUDP run on a goroutine of their own, which owns the flow:
// when they return, a flow without a decision is rejected and an accepted
// connection closed. Their context ends when the Stack stops.
type Handler interface {
	ServeTCP(ctx context.Context, f *TCPFlow)
	ServeUDP(ctx context.Context, f *UDPFlow)

	// Echo reports whether a ping to addr deserves an answer, which is that
	// somebody is there. It is called for each ping on the goroutine that
	// reads packets: a look-up, never more.
	Echo(addr netip.Addr) bool
}

// A Config says what a Stack is made of. Zero limits mean the defaults.
type Config struct {
	Device  Device
	Handler Handler
	Logger  *slog.Logger

	Limits Limits
}

// A Stack serves the flows of one device.
type Stack struct {
	// Set by New, then read-only.
	log  *slog.Logger
	link *tunlink.Endpoint
	net  *stack.Stack
	tcp  *tcpForwarder
	udp  *udpForwarder
	echo *echoResponder

	flows   *census
	started atomic.Bool
}

// New returns a Stack for the device, which it takes over. The Stack handles
// nothing before Run; one that is never run has to be closed.
func New(cfg Config) (*Stack, error) {
	s := &Stack{log: cfg.Logger, flows: newCensus()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	log.SetTarget(gvisorLog{s.log})
	link, err := tunlink.New(tunlink.Config{
		FD: cfg.Device.FD, MTU: cfg.Device.MTU, VnetHdr: cfg.Device.VnetHdr, TSO: cfg.Device.TSO,
		OnSYN: s.onSYN,
	})
	if err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	s.link = link
	if cfg.Handler == nil {
		return nil, errors.Join(errors.New("netstack: no handler"), link.Shutdown())
	}
	if s.net, err = newNetwork(link); err != nil {
		return nil, errors.Join(fmt.Errorf("netstack: %w", err), link.Shutdown())
	}
	limits := cfg.Limits.withDefaults()
	s.tcp = newTCPForwarder(s.net, s.flows, cfg.Handler, limits)
	s.udp = newUDPForwarder(s.net, s.flows, cfg.Handler, limits)
	s.echo = newEchoResponder(s.net, cfg.Handler.Echo)
	return s, nil
}

// Run serves the device until ctx ends or the device fails, and returns once
// everything that it started has ended. It can be called once.
func (s *Stack) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("netstack: already run")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.tcp.ctx, s.udp.ctx = ctx, ctx

	var wg sync.WaitGroup
	var readErr error
	wg.Go(func() {
		defer cancel()
		readErr = s.link.Run(ctx)
	})
	wg.Go(func() { s.sweep(ctx) })
	wg.Wait() // both end with ctx, and the first ends it

	return errors.Join(readErr, s.stop())
}

// Close releases a Stack that was never run.
func (s *Stack) Close() error {
	if s.started.Swap(true) {
		return nil
	}
	return s.stop()
}

// Drain refuses new flows from now on, TCP with a reset and UDP as port
// unreachable, and waits until the flows that are open have ended or ctx has.
func (s *Stack) Drain(ctx context.Context) error {
	select {
	case <-s.flows.drain():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain %d flows: %w", s.flows.len(), context.Cause(ctx))
	}
}

// stop ends all flows and the stack. Nothing delivers packets any more.
func (s *Stack) stop() error {
	deadline := time.NewTimer(stopTimeout)
	defer deadline.Stop()
	err := s.cut(deadline.C)

	var wg sync.WaitGroup
	ended := make(chan struct{}) // closed by the goroutine below
	wg.Go(func() {
		defer close(ended)
		s.net.Close()
		s.net.Wait()
	})
	select {
	case <-ended:
		wg.Wait()
	case <-deadline.C:
		err = errors.Join(err, errors.New("netstack: the network stack did not end"))
	}
	return errors.Join(err, s.link.Shutdown())
}

// cut resets every connection until each handler has noticed. The stack's own
// Close aborts endpoints only once, and not those that are closing.
func (s *Stack) cut(deadline <-chan time.Time) error {
	tick := time.NewTicker(cutInterval)
	defer tick.Stop()
	idle := s.flows.drain()
	for {
		for _, ep := range s.net.RegisteredEndpoints() {
			ep.Abort()
		}
		for _, ep := range s.net.CleanupEndpoints() {
			ep.Abort()
		}
		select {
		case <-idle:
			s.flows.wait()
			return nil
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("netstack: %d handlers did not return", s.flows.len())
		}
	}
}

// sweep applies what depends on time. One timer serves all flows.
func (s *Stack) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	var told pressure
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now := time.Now()
			s.tcp.sweep(now)
			s.udp.sweep(now)
			told.report(s.log, s.Stats())
		}
	}
}
