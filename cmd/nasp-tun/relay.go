// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/proxy"
)

// Two kinds of connections go to the host's own loopback, and so round the
// mesh: those to 192.0.0.3, and those to a --host-port inside. Both are joined
// here, byte by byte, with half-close and reset carried over.

// A stream is one side of a relay.
type stream interface {
	net.Conn
	CloseWrite() error
	Abort() // resets
}

// kernelStream is a kernel socket as a stream.
type kernelStream struct{ *net.TCPConn }

func (k kernelStream) Abort() {
	_ = k.SetLinger(0) // Close then sends RST
	_ = k.Close()
}

var errNotTCP = errors.New("not a TCP connection")

func asStream(c net.Conn) (stream, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, errNotTCP
	}
	return kernelStream{t}, nil
}

// relay joins two streams until both directions have ended, one of them is
// reset, or ctx ends.
func relay(ctx context.Context, a, b stream) {
	stop := context.AfterFunc(ctx, func() {
		a.Abort()
		b.Abort()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { pump(b, a) })
	pump(a, b)
	wg.Wait()
	_ = a.Close()
	_ = b.Close()
}

// pump carries one direction and its end.
func pump(to, from stream) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		to.Abort()
		from.Abort()
	}
}

// A loopback reaches the host's own 127.0.0.1.
type loopback struct {
	dial dialFunc
	log  *slog.Logger
}

func (l *loopback) dialPort(ctx context.Context, network string, port uint16) (net.Conn, error) {
	return l.dial(ctx, network, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}

// serveTCP joins a captured connection to the same port of the host. The
// handshake is answered when the host's server has answered.
func (l *loopback) serveTCP(ctx context.Context, f proxy.Flow) {
	dialing, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-f.Done(): // the client gave up
			cancel()
		case <-dialing.Done():
		}
	})
	up, err := l.dialStream(dialing, f.Destination().Port())
	cancel()
	watch.Wait()
	if err != nil {
		f.Reject()
		return
	}
	down, err := f.Accept()
	if err != nil {
		up.Abort()
		return
	}
	relay(ctx, down, up)
}

func (l *loopback) dialStream(ctx context.Context, port uint16) (stream, error) {
	c, err := l.dialPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	return asStream(c)
}

// maxHostPortConns bounds the connections through one --host-port. More wait in
// the backlog of the listener.
const maxHostPortConns = 1024

// serveHostPort joins each connection to a listener inside to the host's port
// of the same number, until ctx ends.
func (l *loopback) serveHostPort(ctx context.Context, ln net.Listener, port uint16) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	room := make(chan struct{}, maxHostPortConns)
	for {
		room <- struct{}{}
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		down, err := asStream(c)
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer func() { <-room }()
			up, err := l.dialStream(ctx, port)
			if err != nil {
				l.log.Debug("no answer at the host's port", "port", port, "err", err)
				down.Abort()
				return
			}
			relay(ctx, down, up)
		})
	}
}

// datagramIdle ends a flow of datagrams to the host's loopback. RFC 4787
// section 4.3 wants at least two minutes.
const datagramIdle = 2 * time.Minute

// maxDatagram is what UDP can carry.
const maxDatagram = 1<<16 - 1

// serveUDP joins a flow of datagrams to the same port of the host.
func (l *loopback) serveUDP(ctx context.Context, f proxy.UDPFlow) {
	up, err := l.dialPort(ctx, "udp", f.Destination().Port())
	if err != nil {
		f.Reject()
		return
	}
	down, err := f.Accept()
	if err != nil {
		_ = up.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(datagramIdle, cancel)
	defer idle.Stop()
	stop := context.AfterFunc(ctx, func() {
		_ = up.Close()
		_ = down.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		pumpDatagrams(up, down, idle)
	})
	pumpDatagrams(down, up, idle)
	cancel()
	wg.Wait()
}

func pumpDatagrams(to, from net.Conn, idle *time.Timer) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		idle.Reset(datagramIdle)
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
