// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// tcpIdle ends a connection on which nothing is asked; RFC 7766, 6.2.3
	// wants seconds rather than minutes.
	tcpIdle = 30 * time.Second
	// maxPipelined bounds the questions of one connection that wait at one
	// time; the client's next ones then wait in its socket.
	maxPipelined = 64
	// maxConns bounds the connections of a listener, as a program that leaks
	// them must not take all descriptors.
	maxConns = 256
	// readSize takes any question: those over 4 KiB come by TCP.
	readSize = 4 << 10
)

// ServeFlow serves one captured UDP flow: datagrams in, datagrams out. It
// returns when reading fails or ctx ends, and closes c.
func (s *Server) ServeFlow(ctx context.Context, c net.Conn) {
	defer c.Close()
	var waiting sync.WaitGroup // its answers go out before c is closed
	defer waiting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()

	places := make(chan struct{}, maxPipelined)
	buf := make([]byte, readSize)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		s.reply(ctx, &waiting, places, buf[:n], false, func(a []byte) {
			_, _ = c.Write(a) // a client that is gone asks no more
		})
	}
}

// reply answers q, at once or, if others have to be asked, when they have
// answered: the questions behind it must not wait.
func (s *Server) reply(ctx context.Context, waiting *sync.WaitGroup, places chan struct{}, q []byte, tcp bool, send func([]byte)) {
	answer, forward := s.begin(q, tcp)
	if forward == nil {
		if answer != nil {
			send(answer)
		}
		return
	}
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return
	}
	waiting.Go(func() {
		defer func() { <-places }()
		if answer, err := s.forward(ctx, forward, tcp); err == nil && answer != nil {
			send(answer)
		}
	})
}

// ServeConn serves one TCP connection, whose messages are preceded by their
// length. Answers may come in another order than questions (RFC 7766, 7). It
// returns when the client has ended, falls silent or writes garbage, or ctx
// ends; it closes c.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()

	var writing sync.Mutex
	send := func(a []byte) {
		writing.Lock()
		defer writing.Unlock()
		// One write, so that length and message share a segment.
		_ = c.SetWriteDeadline(time.Now().Add(tcpIdle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			_ = c.Close() // what follows would be out of frame
		}
	}
	places := make(chan struct{}, maxPipelined)
	for {
		if err := c.SetReadDeadline(time.Now().Add(tcpIdle)); err != nil {
			return
		}
		q, err := readMessage(c)
		if err != nil {
			return
		}
		s.reply(ctx, &waiting, places, q, true, send)
	}
}

func readMessage(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < headerSize {
		return nil, errors.New("message shorter than its header")
	}
	q := make([]byte, n)
	_, err := io.ReadFull(c, q)
	return q, err
}

// ServePacketConn serves a UDP socket until ctx ends, and closes it.
func (s *Server) ServePacketConn(ctx context.Context, pc net.PacketConn) error {
	defer pc.Close()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer context.AfterFunc(ctx, func() { _ = pc.Close() })()

	// Many clients share the socket: there is room for as many questions as
	// may be forwarded at all, so that none waits for another's.
	places := make(chan struct{}, maxForwards+1)
	buf := make([]byte, readSize)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve dns on %s: %w", pc.LocalAddr(), err)
		case err != nil:
			continue // an ICMP error about an earlier answer
		}
		s.reply(ctx, &waiting, places, buf[:n], false, func(a []byte) {
			_, _ = pc.WriteTo(a, from) // UDP may lose it anyway
		})
	}
}

// ServeListener serves the connections of a TCP socket until ctx ends, and
// closes it.
func (s *Server) ServeListener(ctx context.Context, l net.Listener) error {
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()

	places := make(chan struct{}, maxConns)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve dns on %s: %w", l.Addr(), err)
		}
		select {
		case places <- struct{}{}:
		default: // the client tries again, or by UDP
			s.stats.refused.Add(1)
			_ = c.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-places }()
			s.ServeConn(ctx, c)
		})
	}
}
