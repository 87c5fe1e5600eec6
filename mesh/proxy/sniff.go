// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
)

const (
	// serverFirst is how long a silent client is waited for where the mesh
	// sets no limit and a server may be waiting to speak. istiod sets none by
	// default, and Envoy then waits for ever, in which a protocol whose server
	// speaks first (MySQL, SMTP) dies.
	// A second is longer than any client takes that means to speak, and short
	// enough for one that waits to be greeted.
	serverFirst = time.Second
	// maxSniff bounds what is read before a chain is chosen, as Envoy's
	// inspectors do; it is the largest ClientHello that OpenSSL sends too.
	maxSniff = 64 << 10
	// firstSniff holds a common ClientHello or request head.
	firstSniff = 2 << 10
)

// The transport protocols of a filter chain's condition.
const (
	transportTLS = "tls"
	transportRaw = "raw_buffer"
)

// A sniffer reads the first bytes of a client and keeps them for whoever
// serves it afterwards.
type sniffer struct {
	c   Conn
	buf []byte
	err error // the client ended, or the time did
}

// more reads once. It reports whether there is something new to look at.
func (s *sniffer) more() bool {
	if s.err != nil || len(s.buf) >= maxSniff {
		return false
	}
	if s.buf == nil {
		s.buf = make([]byte, 0, firstSniff)
	}
	if len(s.buf) == cap(s.buf) {
		s.buf = append(make([]byte, 0, min(4*cap(s.buf), maxSniff)), s.buf...)
	}
	n, err := s.c.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	s.err = err
	return n > 0
}

// silent reports whether the client ended without a word.
func (s *sniffer) silent() bool { return s.err == io.EOF && len(s.buf) == 0 }

// timedOut reports whether the client stayed silent too long.
func (s *sniffer) timedOut() bool { return errors.Is(s.err, os.ErrDeadlineExceeded) }

// gone reports whether the client cut the connection. An end of its stream is
// not that: it may still wait for an answer.
func (s *sniffer) gone() bool {
	return s.err != nil && s.err != io.EOF && !s.timedOut()
}

// inspect does the work of a listener's inspectors, in Envoy's order: HTTP is
// looked for only where there is no TLS. What cannot be told, because the
// client fell silent or ended, is plain bytes of no known protocol.
func (s *sniffer) inspect(wantTLS, wantHTTP bool) catalog.Sniff {
	found := catalog.Sniff{Transport: transportRaw}
	if wantTLS {
		h, v := await(s, parseHello)
		if v == is {
			return catalog.Sniff{Transport: transportTLS, ServerName: h.serverName, Protocols: h.protocols}
		}
	}
	if wantHTTP {
		if protocol, v := await(s, parseRequestLine); v == is {
			found.Protocols = []string{protocol}
		}
	}
	return found
}

// http2 reports whether the client opens HTTP/2.
func (s *sniffer) http2() bool {
	_, v := await(s, func(b []byte) (struct{}, verdict) {
		return struct{}{}, startsWith(b, preface)
	})
	return v == is
}

// await reads until parse can tell.
func await[T any](s *sniffer, parse func([]byte) (T, verdict)) (T, verdict) {
	for {
		found, v := parse(s.buf)
		if v != needMore || !s.more() {
			return found, v
		}
	}
}

// within bounds the reads that follow by d, or by ctx alone if d is 0. The
// returned function lifts both bounds.
func (s *sniffer) within(ctx context.Context, d time.Duration) (lift func(), err error) {
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	if err := s.c.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, s.c.Abort)
	return func() {
		stop()
		if d > 0 {
			_ = s.c.SetReadDeadline(time.Time{}) // a dead connection shows at the next read
		}
	}, nil
}

// conn returns the client with what was read put back.
func (s *sniffer) conn() Conn {
	if len(s.buf) == 0 {
		return s.c
	}
	return &replayed{Conn: s.c, head: s.buf}
}

// replayed is a Conn whose first bytes were read before.
type replayed struct {
	Conn
	head []byte // owned by the reader
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.head) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.head)
	if r.head = r.head[n:]; len(r.head) == 0 {
		r.head = nil // free it: the connection may live for days
	}
	return n, nil
}

// describe names what a client showed, for messages.
func describe(s *catalog.Sniff) string {
	var parts []string
	parts = append(parts, s.Transport)
	if s.ServerName != "" {
		parts = append(parts, "server name "+s.ServerName)
	}
	if len(s.Protocols) > 0 {
		parts = append(parts, "protocols "+strings.Join(s.Protocols, ", "))
	}
	return strings.Join(parts, ", ")
}
