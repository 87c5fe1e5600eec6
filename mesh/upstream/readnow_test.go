// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

// held is a socket that keeps back what is written beyond a limit, until it is
// let go.
type held struct {
	net.Conn
	limit int // below 0: none
	kept  []byte
}

func (h *held) Write(b []byte) (int, error) {
	n := len(b)
	if h.limit >= 0 {
		n = min(n, h.limit)
		h.limit -= n
	}
	h.kept = append(h.kept, b[n:]...)
	if _, err := h.Conn.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (h *held) letGo() error {
	h.limit = -1
	_, err := h.Conn.Write(h.kept)
	return err
}

// overTLS connects to a server over sockets of the kernel. The server may hold
// back a part of its records.
func overTLS(t *testing.T) (c *upstream.Conn, server *tls.Conn, wire *held) {
	t.Helper()
	ca := upstreamtest.NewAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := ca.Server("spiffe://cluster.local/ns/testing/sa/default")
	cfg.DynamicRecordSizingDisabled = true // full records from the first on
	accepted := make(chan *tls.Conn, 1)
	wire = &held{limit: -1}
	go func() {
		s, err := l.Accept()
		if err != nil {
			accepted <- nil
			return
		}
		wire.Conn = s
		tc := tls.Server(wire, cfg)
		_ = tc.HandshakeContext(context.Background()) // its failure is the client's too
		accepted <- tc
	}()
	m := upstream.New(upstream.Config{
		Identity: ca.Store(0),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	c, err = m.Connect(t.Context(), pick(t, m, cluster("c", mtls("sni"), l.Addr().String())))
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() { c.Abort(); _ = wire.Conn.Close() })
	return c, server, wire
}

// arrived waits until something can be read at once.
func arrived(t *testing.T, c *upstream.Conn, b []byte) (int, error) {
	t.Helper()
	for {
		if n, err := c.ReadNow(b); n > 0 || err != nil {
			return n, err
		}
		if t.Context().Err() != nil {
			t.Fatal("nothing arrives")
		}
	}
}

func TestReadNow(t *testing.T) {
	c, server, wire := overTLS(t)
	b := make([]byte, 1<<16)
	if n, err := c.ReadNow(b); n != 0 || err != nil {
		t.Fatalf("before anything is sent: %d, %v", n, err)
	}

	// Records that have arrived are read one after the other, and whole.
	_, _ = io.WriteString(server, "one")
	_, _ = io.WriteString(server, strings.Repeat("x", 16<<10))
	if n, err := c.Read(b); err != nil || string(b[:n]) != "one" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if n, err := arrived(t, c, b[:1000]); err != nil || n != 1000 {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := c.ReadNow(b); err != nil || n != 16<<10-1000 {
		t.Fatalf("the rest of the record: %d, %v", n, err)
	}
	if n, err := c.ReadNow(b); n != 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}

	// Half a record is nothing yet, and not lost either.
	wire.limit = 20
	_, _ = io.WriteString(server, "in two halves")
	for range 100 {
		if n, err := c.ReadNow(b); n != 0 || err != nil {
			t.Fatalf("half a record: %d, %v", n, err)
		}
	}
	if err := wire.letGo(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != "in two halves" {
		t.Fatalf("%q, %v", b[:n], err)
	}
}

func TestReadNowSeesTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*tls.Conn, *held)
		want error
	}{
		{"announced", func(s *tls.Conn, _ *held) { _ = s.CloseWrite() }, io.EOF},
		{"cut", func(_ *tls.Conn, h *held) { _ = h.Conn.Close() }, upstream.ErrTruncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, server, wire := overTLS(t)
			tt.end(server, wire)
			b := make([]byte, 10)
			if n, err := arrived(t, c, b); n != 0 || !errors.Is(err, tt.want) {
				t.Errorf("%d, %v; want %v", n, err, tt.want)
			}
		})
	}
}
