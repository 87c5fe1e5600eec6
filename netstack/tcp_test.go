// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// links are the kinds of device that each behaviour has to hold on.
var links = []struct {
	name string
	opt  netstacktest.Options
	dst  netip.AddrPort
}{
	{"v4", netstacktest.Options{}, service4},
	{"v6", netstacktest.Options{}, service6},
	{"v4 plain", netstacktest.Options{Plain: true}, service4},
	{"v6 plain, large MTU", netstacktest.Options{Plain: true, MTU: 65535}, service6},
}

func TestAccept(t *testing.T) {
	for _, l := range links {
		t.Run(l.name, func(t *testing.T) {
			type addrs struct{ src, dst, local, remote netip.AddrPort }
			got := make(chan addrs, 1)
			c, _ := start(t, handler{tcp: func(_ context.Context, f *netstack.TCPFlow) {
				conn, err := f.Accept()
				if err != nil {
					t.Errorf("Accept: %v", err)
					return
				}
				got <- addrs{
					f.Source(), f.Destination(),
					netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String()),
				}
				io.Copy(conn, conn)
			}}, l.opt, netstack.Limits{})

			conn, err := c.DialTCP(t.Context(), l.dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			a, src := <-got, netip.MustParseAddrPort(conn.LocalAddr().String())
			if want := (addrs{src, l.dst, l.dst, src}); a != want {
				t.Errorf("addresses %+v, want %+v", a, want)
			}
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			conn.CloseWrite()
			if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
				t.Errorf("echoed %q, %v", b, err)
			}
		})
	}
}

func TestRefusal(t *testing.T) {
	for _, tt := range []struct {
		name   string
		refuse func(f *netstack.TCPFlow)
	}{
		{"Reject", func(f *netstack.TCPFlow) { f.Reject() }},
		{"no decision", func(*netstack.TCPFlow) {}},
		{"Reject twice", func(f *netstack.TCPFlow) { f.Reject(); f.Reject() }},
		{"Accept after Reject", func(f *netstack.TCPFlow) {
			f.Reject()
			if _, err := f.Accept(); !errors.Is(err, netstack.ErrDecided) {
				t.Errorf("Accept after Reject: %v", err)
			}
		}},
	} {
		for _, dst := range []netip.AddrPort{service4, service6} {
			t.Run(tt.name+" "+dst.String(), func(t *testing.T) {
				c, s := start(t, handler{tcp: func(_ context.Context, f *netstack.TCPFlow) { tt.refuse(f) }},
					netstacktest.Options{}, netstack.Limits{})
				for range 3 { // a slot that leaks is seen by the next
					if _, err := c.DialTCP(t.Context(), dst); !errors.Is(err, netstacktest.ErrRefused) {
						t.Fatalf("dial: %v, want refused", err)
					}
				}
				if got := s.Stats().TCP; got.Rejected != 3 || got.Accepted != 0 {
					t.Errorf("stats %+v", got)
				}
			})
		}
	}
}

// Each direction ends on its own, and what comes after the end of the other
// still arrives.
func TestHalfClose(t *testing.T) {
	for _, l := range links {
		t.Run("client first "+l.name, func(t *testing.T) {
			c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				b, err := io.ReadAll(conn)
				if string(b) != "question" || err != nil {
					t.Errorf("read %q, %v", b, err)
				}
				conn.Write([]byte("answer"))
			})}, l.opt, netstack.Limits{})
			conn, err := c.DialTCP(t.Context(), l.dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("question"))
			conn.CloseWrite()
			if b, err := io.ReadAll(conn); string(b) != "answer" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
		})
		t.Run("service first "+l.name, func(t *testing.T) {
			got := make(chan string, 1)
			c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				conn.Write([]byte("greeting"))
				if err := conn.CloseWrite(); err != nil {
					t.Errorf("CloseWrite: %v", err)
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
					t.Errorf("Write after CloseWrite: %v", err)
				}
				b, _ := io.ReadAll(conn)
				got <- string(b)
			})}, l.opt, netstack.Limits{})
			conn, err := c.DialTCP(t.Context(), l.dst)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(conn); string(b) != "greeting" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
			conn.Write([]byte("late"))
			conn.Close()
			if b := <-got; b != "late" {
				t.Errorf("service read %q", b)
			}
		})
	}
}

// A reset of the client wakes the reader with ECONNRESET and calls OnReset,
// whatever had been closed before.
func TestResetFromClient(t *testing.T) {
	for _, tt := range []struct {
		name        string
		prepare     func(client *netstacktest.Conn)
		serverFirst func(c *netstack.TCPConn)
		readErr     error
	}{
		{"established", func(*netstacktest.Conn) {}, func(*netstack.TCPConn) {}, syscall.ECONNRESET},
		{"after the client's FIN", func(c *netstacktest.Conn) { c.CloseWrite() }, func(c *netstack.TCPConn) { c.Read(make([]byte, 1)) }, io.EOF},
		{"after our FIN", func(c *netstacktest.Conn) { c.Read(make([]byte, 1)) }, func(c *netstack.TCPConn) { c.CloseWrite() }, syscall.ECONNRESET},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ready, done := make(chan struct{}), make(chan struct{})
			c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				defer close(done)
				tt.serverFirst(conn)
				reset := make(chan struct{})
				conn.OnReset(func() { close(reset) })
				close(ready)
				<-reset
				again := make(chan struct{})
				conn.OnReset(func() { close(again) })
				<-again // at once, since it is reset already
				for range 2 {
					if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, tt.readErr) {
						t.Errorf("Read: %v, want %v", err, tt.readErr)
					}
				}
				if _, err := conn.Write([]byte("x")); err == nil {
					t.Error("Write after a reset succeeded")
				}
			})}, netstacktest.Options{}, netstack.Limits{})
			conn, err := c.DialTCP(t.Context(), service4)
			if err != nil {
				t.Fatal(err)
			}
			tt.prepare(conn)
			<-ready
			conn.Abort()
			<-done
		})
	}
}

// What the service ends with a reset, the client sees as one.
func TestResetToClient(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(c *netstack.TCPConn)
	}{
		{"Abort", func(c *netstack.TCPConn) { c.Abort() }},
		{"Abort with data unsent and unread", func(c *netstack.TCPConn) { c.Write([]byte("x")); c.Abort() }},
		{"Close with data unread", func(c *netstack.TCPConn) { c.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				conn.OnReset(func() { t.Error("OnReset called for our own reset") })
				conn.Read(make([]byte, 1)) // the client knows of the connection
				tt.end(conn)
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					t.Error("Read after the end succeeded")
				}
			})}, netstacktest.Options{}, netstack.Limits{})
			conn, err := c.DialTCP(t.Context(), service4)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("two bytes and more"))
			if _, err := io.ReadAll(conn); err == nil {
				t.Error("the client saw an orderly end")
			}
		})
	}
}

// An orderly end calls no OnReset.
func TestOrderlyEndIsNoReset(t *testing.T) {
	done := make(chan struct{})
	c, _ := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
		defer close(done)
		conn.OnReset(func() { t.Error("OnReset called") })
		if _, err := io.Copy(conn, conn); err != nil {
			t.Errorf("copy: %v", err)
		}
		conn.CloseWrite()
	})}, netstacktest.Options{}, netstack.Limits{})
	conn, err := c.DialTCP(t.Context(), service4)
	if err != nil {
		t.Fatal(err)
	}
	conn.CloseWrite()
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("client: %v", err)
	}
	conn.Close()
	<-done
}

// A client that gives up before the decision is told to the handler.
func TestClientGivesUp(t *testing.T) {
	t.Parallel() // it waits for seconds
	pending, gone := make(chan struct{}, 8), make(chan error, 8)
	c, s := start(t, handler{tcp: func(_ context.Context, f *netstack.TCPFlow) {
		pending <- struct{}{}
		<-f.Done()
		_, err := f.Accept()
		gone <- err
	}}, netstacktest.Options{}, netstack.Limits{})

	t.Run("reset", func(t *testing.T) {
		src := netip.AddrPortFrom(netstacktest.Addr4, 40000)
		c.SendTCP(netstacktest.Segment{Src: src, Dst: service4, Seq: 1000, SYN: true})
		<-pending
		c.SendTCP(netstacktest.Segment{Src: src, Dst: service4, Seq: 1001, RST: true})
		if err := <-gone; !errors.Is(err, netstack.ErrClientGone) {
			t.Errorf("Accept: %v", err)
		}
	})
	t.Run("another connection from the same port", func(t *testing.T) {
		src := netip.AddrPortFrom(netstacktest.Addr4, 40001)
		c.SendTCP(netstacktest.Segment{Src: src, Dst: service4, Seq: 2000, SYN: true})
		<-pending
		c.SendTCP(netstacktest.Segment{Src: src, Dst: service4, Seq: 3000, SYN: true})
		if err := <-gone; !errors.Is(err, netstack.ErrClientGone) {
			t.Errorf("Accept: %v", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		src := netip.AddrPortFrom(netstacktest.Addr4, 40002)
		c.SendTCP(netstacktest.Segment{Src: src, Dst: service4, Seq: 4000, SYN: true})
		<-pending
		if err := <-gone; !errors.Is(err, netstack.ErrClientGone) {
			t.Errorf("Accept: %v", err)
		}
	})
	if got := s.Stats().TCP; got.Gone != 3 || got.Requests != 3 {
		t.Errorf("stats %+v", got)
	}
}
