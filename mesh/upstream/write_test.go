// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

// counted is a socket that counts the system calls by which it is written to.
type counted struct {
	*net.TCPConn
	writes *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(b)
}

// Whatever the sizes of writes are, the server gets the bytes in order, and a
// large write costs one system call, not one for each record.
func TestLargeWritesLeaveTogether(t *testing.T) {
	ca := upstreamtest.NewAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	serveTLS(t, l, ca.Server("spiffe://cluster.local/ns/testing/sa/default"), func(c *tls.Conn) {
		b, _ := io.ReadAll(c)
		got <- b
	})
	var writes atomic.Int64
	m := upstream.New(upstream.Config{
		Identity: ca.Store(0),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return counted{c.(*net.TCPConn), &writes}, nil
		},
	})
	c, err := m.Connect(t.Context(), pick(t, m, cluster("c", mtls("sni"), l.Addr().String())))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var want bytes.Buffer
	for _, tt := range []struct {
		size int
		most int64 // system calls
	}{{1, 1}, {16 << 10, 1}, {16<<10 + 1, 1}, {64 << 10, 1}, {65372, 1}, {200_000, 4}, {5, 1}} {
		b := make([]byte, tt.size)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		want.Write(b)
		before := writes.Load()
		if n, err := c.Write(b); n != tt.size || err != nil {
			t.Fatalf("write of %d: %d, %v", tt.size, n, err)
		}
		if n := writes.Load() - before; n > tt.most {
			t.Errorf("a write of %d bytes took %d system calls, want at most %d", tt.size, n, tt.most)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, want.Bytes()) {
		t.Error("the server got other bytes")
	}
}

// stuck is a socket whose peer stops reading: once armed, a write waits until
// the socket is closed.
type stuck struct {
	*net.TCPConn
	armed          atomic.Bool
	waits, release chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	if !s.armed.Load() {
		return s.TCPConn.Write(b)
	}
	close(s.waits)
	<-s.release
	return 0, net.ErrClosed
}

func (s *stuck) Close() error {
	close(s.release)
	return s.TCPConn.Close()
}

// A close must not wait behind a large write for a server that does not read.
func TestCloseEndsALargeWrite(t *testing.T) {
	ca := upstreamtest.NewAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveTLS(t, l, ca.Server("spiffe://cluster.local/ns/testing/sa/default"), echo)
	socket := &stuck{waits: make(chan struct{}), release: make(chan struct{})}
	m := upstream.New(upstream.Config{
		Identity: ca.Store(0),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			socket.TCPConn = c.(*net.TCPConn)
			return socket, nil
		},
	})
	c, err := m.Connect(t.Context(), pick(t, m, cluster("c", mtls("sni"), l.Addr().String())))
	if err != nil {
		t.Fatal(err)
	}
	socket.armed.Store(true)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 64<<10))
		wrote <- err
	}()
	<-socket.waits
	_ = c.Close()
	if err := <-wrote; err == nil {
		t.Error("the write succeeded")
	}
}
