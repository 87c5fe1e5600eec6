// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/refs"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

// However many SYNs come at once, no more than the limits are in flight. The
// others are dropped, and a slot that is given back can be taken.
func TestSYNFlood(t *testing.T) {
	const syns, total, perSource = 10_000, 1000, 400
	release := make(chan struct{})
	var served atomic.Int64
	c, s := start(t, handler{tcp: func(context.Context, *netstack.TCPFlow) {
		served.Add(1)
		<-release
	}}, netstacktest.Options{}, netstack.Limits{TCPInFlight: total, TCPInFlightPerSource: perSource})

	sources := make([]netip.Addr, 4)
	for i := range sources {
		sources[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
	}
	for i := range syns {
		src := netip.AddrPortFrom(sources[i%len(sources)], uint16(1000+i/len(sources)))
		c.SendTCP(netstacktest.Segment{Src: src, Dst: service4, Seq: 1, SYN: true})
	}
	var got netstack.TCPStats
	eventually(t, func() bool {
		got = s.Stats().TCP
		return got.Requests+got.RefusedInFlight+got.RefusedPerSource == syns
	})
	if got.InFlight != total || got.Requests != total || got.RefusedInFlight == 0 {
		t.Errorf("%+v", got)
	}
	close(release)
	eventually(t, func() bool { return s.Stats().TCP.InFlight == 0 })
	if got := s.Stats().TCP; got.Rejected != total || served.Load() != total {
		t.Errorf("served %d; %+v", served.Load(), got)
	}
	if _, err := c.DialTCP(t.Context(), service4); !errors.Is(err, netstacktest.ErrRefused) {
		t.Errorf("after the flood: %v", err)
	}
}

// One source cannot take more than its share.
func TestSYNFloodOfOneSource(t *testing.T) {
	const perSource = 5
	release := make(chan struct{})
	defer close(release)
	served := make(chan netip.Addr, 100)
	c, s := start(t, handler{tcp: func(_ context.Context, f *netstack.TCPFlow) {
		served <- f.Source().Addr()
		<-release
	}}, netstacktest.Options{}, netstack.Limits{TCPInFlight: 10, TCPInFlightPerSource: perSource})
	greedy, other := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.101")
	for port := range uint16(20) {
		c.SendTCP(netstacktest.Segment{Src: netip.AddrPortFrom(greedy, 1000+port), Dst: service4, SYN: true})
	}
	c.SendTCP(netstacktest.Segment{Src: netip.AddrPortFrom(other, 1000), Dst: service4, SYN: true})
	count := map[netip.Addr]int{}
	for range perSource + 1 {
		count[<-served]++
	}
	if count[greedy] != perSource || count[other] != 1 {
		t.Errorf("served %v", count)
	}
	if got := s.Stats().TCP.RefusedPerSource; got != 20-perSource {
		t.Errorf("refused %d", got)
	}
}

// A SYN that is sent again, because the decision takes time, is one request.
func TestDuplicateSYN(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	served := make(chan struct{}, 10)
	c, s := start(t, handler{tcp: func(context.Context, *netstack.TCPFlow) {
		served <- struct{}{}
		<-release
	}}, netstacktest.Options{}, netstack.Limits{})
	for range 5 {
		c.SendTCP(netstacktest.Segment{Src: netip.AddrPortFrom(netstacktest.Addr4, 1000), Dst: service4, Seq: 7, SYN: true})
	}
	eventually(t, func() bool { return s.Stats().TCP.DuplicateSYN == 4 })
	<-served
	if got := s.Stats().TCP; len(served) != 0 || got.Requests != 1 || got.InFlight != 1 || got.Gone != 0 {
		t.Errorf("%d more served; %+v", len(served), got)
	}
}

// Connections are bounded too, and those that end make room.
func TestFlowLimit(t *testing.T) {
	c, s := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) { io.Copy(io.Discard, conn) })},
		netstacktest.Options{}, netstack.Limits{TCPFlows: 2})
	var conns []*netstacktest.Conn
	for range 2 {
		conn, err := c.DialTCP(t.Context(), service4)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	eventually(t, func() bool { return s.Stats().TCP.Open == 2 })
	c.SendTCP(netstacktest.Segment{Src: netip.AddrPortFrom(netstacktest.Addr4, 1000), Dst: service4, SYN: true})
	eventually(t, func() bool { return s.Stats().TCP.RefusedFlows == 1 })
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, func() bool { return s.Stats().TCP.Open == 0 })
	conn, err := c.DialTCP(t.Context(), service4)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// Beyond the connections that get full buffers, further ones work too.
func TestManyConnections(t *testing.T) {
	c, s := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) { io.Copy(conn, conn) })},
		netstacktest.Options{}, netstack.Limits{})
	const n = 1100
	conns := make([]*netstacktest.Conn, n)
	for i := range conns {
		var err error
		if conns[i], err = c.DialTCP(t.Context(), service4); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return s.Stats().TCP.Open == n })
	for i, conn := range conns {
		want := counting(300_000)
		if i < n-10 {
			want = want[:1]
		}
		conn.Write(want)
		conn.CloseWrite()
		if b, err := io.ReadAll(conn); !bytes.Equal(b, want) || err != nil {
			t.Fatalf("connection %d: %d bytes of %d, %v", i, len(b), len(want), err)
		}
		conn.Close()
	}
}

// A client may open and close connections for ever without ever waiting for
// one of its ports, although each ends in TIME_WAIT on our side and the ports
// come round again: no SYN is left without an answer.
func TestConnectionRateIsSteady(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 5000
	}
	refs.SetLeakMode(refs.NoLeakChecking)                   // it records a stack for each object
	t.Cleanup(func() { refs.SetLeakMode(refs.LeaksPanic) }) // once the objects of this test are gone
	c, s := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
		conn.CloseWrite() // first, so that TIME_WAIT is ours
		io.Copy(io.Discard, conn)
	})}, netstacktest.Options{}, netstack.Limits{})

	var next atomic.Int64
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			// Few ports for each worker, so that they are used again at once.
			for i := 0; int(next.Add(1)) <= n && !t.Failed(); i++ {
				src := netip.AddrPortFrom(netstacktest.Addr4, uint16(20000+worker*100+i%10))
				conn, err := c.DialTCPFrom(t.Context(), src, service4)
				if errors.Is(err, netstacktest.ErrPortInUse) {
					next.Add(-1)
					continue
				}
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				io.Copy(io.Discard, conn)
				conn.Close()
			}
		})
	}
	wg.Wait()
	got := s.Stats().TCP
	if int(got.Accepted) != n || got.Failed+got.Gone != 0 {
		t.Errorf("%+v", got)
	}
	// A busy machine is late with an answer now and then. A SYN that is
	// dropped in TIME_WAIT would happen to nearly every connection.
	if again := c.Retransmits(); again > uint64(n/100) {
		t.Errorf("the client had to send %d segments again", again)
	}
	if got.ReusedTimeWait == 0 {
		t.Error("no port came round within TIME_WAIT: the test tests nothing")
	}
}
