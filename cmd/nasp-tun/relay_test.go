// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// pair returns both ends of a connection of the kernel.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = c.(*net.TCPConn), d.(*net.TCPConn)
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

// joined is a client and a server with a relay between them.
func joined(t *testing.T, ctx context.Context) (client, server *net.TCPConn, wait func()) {
	t.Helper()
	client, down := pair(t)
	up, server := pair(t)
	var wg sync.WaitGroup
	wg.Go(func() { relay(ctx, kernelStream{down}, kernelStream{up}) })
	return client, server, wg.Wait
}

// Either side may end first; the other way stays open until it ends too.
func TestRelayCarriesHalfClose(t *testing.T) {
	client, server, wait := joined(t, t.Context())
	for _, dir := range []struct{ from, to *net.TCPConn }{{client, server}, {server, client}} {
		if _, err := io.WriteString(dir.from, "hello"); err != nil {
			t.Fatal(err)
		}
		if err := dir.from.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(dir.to)
		if err != nil || string(got) != "hello" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	wait()
}

func TestRelayCarriesReset(t *testing.T) {
	client, server, wait := joined(t, t.Context())
	kernelStream{client}.Abort()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	wait()
}

func TestRelayEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client, server, wait := joined(t, ctx)
	cancel()
	wait()
	for _, c := range []*net.TCPConn{client, server} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	}
}

// A --host-port that nobody serves on the host resets, and the next connection
// is served as if nothing had been.
func TestHostPort(t *testing.T) {
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	port := netip.MustParseAddrPort(served.Addr().String()).Port()
	refuse := make(chan bool, 2)
	refuse <- true
	refuse <- false
	l := &loopback{log: slog.New(slog.DiscardHandler), dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if want := "127.0.0.1:" + strconv.Itoa(int(port)); address != want {
			t.Errorf("dialled %q, want %q", address, want)
		}
		if <-refuse {
			return nil, syscall.ECONNREFUSED
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.serveHostPort(ctx, inside, port); err != nil {
			t.Error(err)
		}
	})
	// The reset may come while Dial still looks at its socket.
	first, err := net.Dial("tcp", inside.Addr().String())
	if err == nil {
		defer first.Close()
		_, err = first.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("nobody there: got %v, want a reset", err)
	}
	second, err := net.Dial("tcp", inside.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	server, err := served.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := io.WriteString(server, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	cancel()
	wg.Wait()
}

func TestDrainWaitsForTheLastFlow(t *testing.T) {
	h := new(flows)
	for range 2 {
		if !h.enter() {
			t.Fatal("refused before the drain")
		}
	}
	h.leave()
	done := h.drain()
	select {
	case <-done:
		t.Fatal("a flow is open")
	default:
	}
	if h.enter() {
		t.Error("a new flow was taken in the drain")
	}
	h.leave()
	<-done
}
