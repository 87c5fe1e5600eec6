// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// A stream is the server's side of a relay.
type stream interface {
	net.Conn
	CloseWrite() error
	// Abort ends the connection so that the peer sees a reset.
	Abort()
}

var (
	errIdle        = errors.New("idle for longer than the mesh allows")
	errMaxDuration = errors.New("open for longer than the mesh allows")
)

// A relay carries bytes between a client and a server, both ways.
type relay struct {
	client   Conn
	head     []byte // what was read from the client before
	server   stream
	transfer *telemetry.Transfer
	idle     time.Duration // 0: none
	duration time.Duration // 0: none

	moved atomic.Int64 // Unix nanoseconds of the last movement, for idle

	mu sync.Mutex
	// clock runs idle down; nil: none, or stopped.
	// +checklocks:mu
	clock *time.Timer
	// reason and err are the first failure: what follows it are echoes.
	// +checklocks:mu
	reason telemetry.Reason
	// +checklocks:mu
	err error
}

// run relays until both directions have ended, or one has failed. An end of
// stream is carried over alone, a reset as a reset.
func (r *relay) run(ctx context.Context) (telemetry.Reason, error) {
	r.client.OnReset(func() { r.cut(telemetry.ClientGone, errors.New("the client reset the connection")) })
	defer context.AfterFunc(ctx, func() { r.cut(telemetry.Drained, context.Cause(ctx)) })()
	defer r.limit()()

	var up sync.WaitGroup
	up.Go(r.upload)
	r.download()
	up.Wait()

	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason, r.err
}

// upload carries the client's bytes to the server.
func (r *relay) upload() {
	to := &counter{w: r.server, r: r, count: r.transfer.Received}
	_, err := to.Write(r.head)
	r.head = nil
	if err == nil {
		// netstack's connections wait without a buffer.
		if from, ok := r.client.(io.WriterTo); ok {
			_, err = from.WriteTo(to)
		} else {
			err = pump(to, r.client)
		}
	}
	switch {
	case err == nil:
		// A server that is gone by now shows in the other direction.
		_ = r.server.CloseWrite()
	case to.failed:
		// The server takes no more. What it said before still goes to the
		// client: download ends this flow, as the connection is dead.
		r.note(telemetry.UpstreamReset, err)
	default:
		r.cut(telemetry.ClientGone, err)
	}
}

// download carries the server's bytes to the client.
func (r *relay) download() {
	to := &counter{w: r.client, r: r, count: r.transfer.Sent}
	err := pump(to, r.server)
	switch {
	case err == nil && r.failed():
		// The server has closed while the client still spoke. The client
		// gets what was said, and then its own connection closed.
		_ = r.client.CloseWrite()
		_ = r.client.Close()
	case err == nil:
		if err := r.client.CloseWrite(); err != nil {
			r.cut(telemetry.ClientGone, fmt.Errorf("close towards the client: %w", err))
		}
	case to.failed:
		r.cut(telemetry.ClientGone, err)
	case upstream.IsAlert(err):
		// Under TLS 1.3 a server refuses our certificate only now.
		r.cut(telemetry.TLS, err)
	default:
		r.cut(telemetry.UpstreamReset, err)
	}
}

// note keeps the first failure and reports whether this is it. An alert is
// always the cause: that writing failed may only have been noticed before.
func (r *relay) note(reason telemetry.Reason, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason != telemetry.OK && !(reason == telemetry.TLS && r.reason == telemetry.UpstreamReset) {
		return false
	}
	r.reason, r.err = reason, err
	return true
}

func (r *relay) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason != telemetry.OK
}

// cut resets both sides.
func (r *relay) cut(reason telemetry.Reason, err error) {
	r.note(reason, err)
	r.server.Abort()
	r.client.Abort()
}

// finish closes both sides in order, which ends both pumps.
func (r *relay) finish(reason telemetry.Reason, err error) {
	if r.note(reason, err) {
		_ = r.server.Close()
		_ = r.client.Close()
	}
}

// limit starts the clocks that the mesh asks for. The returned function stops
// them.
func (r *relay) limit() (stop func()) {
	var whole *time.Timer
	if r.duration > 0 {
		whole = time.AfterFunc(r.duration, func() { r.finish(telemetry.MaxDuration, errMaxDuration) })
	}
	if r.idle > 0 {
		r.moved.Store(time.Now().UnixNano())
		r.mu.Lock()
		r.clock = time.AfterFunc(r.idle, r.tick)
		r.mu.Unlock()
	}
	return func() {
		if whole != nil {
			whole.Stop()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.clock != nil {
			r.clock.Stop()
			r.clock = nil
		}
	}
}

// tick ends a flow that did not move, or looks again when it may be due.
// Moving bytes costs no timer that way.
func (r *relay) tick() {
	rest := r.idle - time.Since(time.Unix(0, r.moved.Load()))
	r.mu.Lock()
	running := r.clock != nil
	if running && rest > 0 {
		r.clock.Reset(rest)
	}
	r.mu.Unlock()
	if running && rest <= 0 {
		r.finish(telemetry.Idle, errIdle)
	}
}
