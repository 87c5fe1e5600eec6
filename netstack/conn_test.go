// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

var (
	_ net.Conn      = (*netstack.TCPConn)(nil)
	_ net.Conn      = (*netstack.UDPConn)(nil)
	_ io.WriterTo   = (*netstack.TCPConn)(nil)
	_ io.ReaderFrom = (*netstack.TCPConn)(nil)
)

// both runs a test on the two kinds of connection, of which the client has
// sent one byte.
func both(t *testing.T, test func(t *testing.T, c net.Conn)) {
	dst := netip.AddrPortFrom(service4.Addr(), 9)
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			done := make(chan struct{})
			serve := func(c net.Conn, err error) {
				defer close(done)
				if err != nil {
					t.Errorf("Accept: %v", err)
					return
				}
				test(t, c)
			}
			c, _ := start(t, handler{
				tcp: func(_ context.Context, f *netstack.TCPFlow) { serve(f.Accept()) },
				udp: func(_ context.Context, f *netstack.UDPFlow) { serve(f.Accept()) },
			}, netstacktest.Options{}, netstack.Limits{})
			var client net.Conn
			var err error
			if network == "tcp" {
				client, err = c.DialTCP(t.Context(), dst)
			} else {
				client, err = c.DialUDP(dst)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := client.Write([]byte("1")); err != nil {
				t.Fatal(err)
			}
			<-done
		})
	}
}

func TestReadDeadline(t *testing.T) {
	both(t, func(t *testing.T, c net.Conn) {
		b := make([]byte, 8)
		past := time.Now().Add(-time.Hour)

		c.SetReadDeadline(past)
		if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read past its deadline: %v", err)
		}
		var timeout net.Error
		if _, err := c.Read(b); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the error is no timeout: %v", err)
		}
		c.SetDeadline(time.Time{})
		if n, err := c.Read(b); n != 1 || err != nil {
			t.Errorf("Read without deadline: %d, %v", n, err)
		}

		// While it blocks: by the timer, and by being moved.
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read whose deadline comes: %v", err)
		}
		c.SetReadDeadline(time.Now().Add(time.Hour))
		failed := make(chan error)
		go func() {
			_, err := c.Read(b)
			failed <- err
		}()
		c.SetReadDeadline(past)
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read whose deadline is moved: %v", err)
		}
		if _, err := c.Write(b); err != nil {
			t.Errorf("Write: %v", err)
		}
	})
}

func TestWriteDeadline(t *testing.T) {
	both(t, func(t *testing.T, c net.Conn) {
		c.SetWriteDeadline(time.Now().Add(-time.Hour))
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write past its deadline: %v", err)
		}
		c.SetWriteDeadline(time.Time{})
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("Write: %v", err)
		}
	})
}

// A client that does not read stops the writer, whom a deadline frees.
func TestWriteBlocks(t *testing.T) {
	done := make(chan struct{})
	c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
		defer close(done)
		b := make([]byte, 1<<20)
		var err error
		for range 100 {
			conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err = conn.Write(b); err != nil {
				break
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: %v", err)
		}
	})}, netstacktest.Options{}, netstack.Limits{})
	transfer(t, c, service4, func(*netstacktest.Conn) { <-done })
}

func TestCloseFreesReader(t *testing.T) {
	both(t, func(t *testing.T, c net.Conn) {
		b := make([]byte, 8)
		c.Read(b)
		failed := make(chan error)
		go func() {
			_, err := c.Read(b)
			failed <- err
		}()
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-failed; !errors.Is(err, net.ErrClosed) && err != io.EOF {
			t.Errorf("Read: %v", err)
		}
		if _, err := c.Write(b); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close again: %v", err)
		}
	})
}

// io.Copy takes the fast ways of a connection, and they end as it expects.
func TestCopy(t *testing.T) {
	sizes := []int{0, 1, 4095, 4096, 4097, 70_000, 1_000_000}
	for _, size := range sizes {
		want := counting(size)
		got := make(chan []byte, 1)
		c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
			var up bytes.Buffer
			if n, err := io.Copy(&up, conn); int(n) != size || err != nil {
				t.Errorf("from the client: %d, %v", n, err)
			}
			got <- up.Bytes()
			// In reads of different sizes: one that is full, one that is not.
			r := io.MultiReader(bytes.NewReader(want[:size/2]), bytes.NewReader(want[size/2:]))
			if n, err := io.Copy(conn, r); int(n) != size || err != nil {
				t.Errorf("to the client: %d, %v", n, err)
			}
		})}, netstacktest.Options{}, netstack.Limits{})
		transfer(t, c, service4, func(conn *netstacktest.Conn) {
			conn.Write(want)
			conn.CloseWrite()
			if up := <-got; !bytes.Equal(up, want) {
				t.Errorf("%d bytes arrived as %d, or changed", size, len(up))
			}
			if down, err := io.ReadAll(conn); !bytes.Equal(down, want) || err != nil {
				t.Errorf("%d bytes came back as %d, or changed; %v", size, len(down), err)
			}
		})
	}
}

// A writer that fails ends the copy with its error; what it did not take is
// gone, as with any copy.
func TestCopyToFailingWriter(t *testing.T) {
	broken := errors.New("broken")
	done := make(chan struct{})
	c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
		defer close(done)
		if n, err := io.Copy(failing{broken}, conn); n != 1 || !errors.Is(err, broken) {
			t.Errorf("copy: %d, %v", n, err)
		}
	})}, netstacktest.Options{}, netstack.Limits{})
	transfer(t, c, service4, func(conn *netstacktest.Conn) {
		conn.Write([]byte("hello"))
		<-done
	})
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 1, f.err }

// A client that never completes the handshake does not hold its place for
// ever.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel() // it waits for seconds
	failed := make(chan error, 1)
	c, s := start(t, handler{tcp: func(_ context.Context, f *netstack.TCPFlow) {
		_, err := f.Accept()
		failed <- err
	}}, netstacktest.Options{}, netstack.Limits{})
	c.SendTCP(netstacktest.Segment{Src: netip.MustParseAddrPort("192.0.2.200:999"), Dst: service4, SYN: true})
	if err := <-failed; err == nil {
		t.Error("accepted")
	}
	if got := s.Stats().TCP; got.Failed != 1 {
		t.Errorf("stats %+v", got)
	}
}
