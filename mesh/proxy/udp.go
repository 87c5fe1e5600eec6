// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
)

const (
	// datagram holds what a flow usually carries: an MTU's worth, jumbo
	// frames included.
	datagram = 9 << 10
	// maxDatagram is the largest that IP can carry.
	maxDatagram = 1 << 16
	// udpDialTimeout bounds opening a socket, which sends nothing.
	udpDialTimeout = 5 * time.Second
)

var errMeshUDP = errors.New("the mesh carries no UDP")

// ServeUDP serves a flow of datagrams and returns when it has ended.
//
// The mesh carries TCP only. Datagrams to its addresses get port unreachable,
// upon which a browser's QUIC falls back to TCP at once. All else goes to the
// host's own sockets.
func (p *Proxy) ServeUDP(ctx context.Context, f UDPFlow) {
	dst := unmap(f.Destination())
	if isChatter(dst) {
		return // without an answer: none is due to a multicast (RFC 1122, 3.2.2)
	}
	r := &telemetry.Record{Start: time.Now(), Protocol: telemetry.UDP, Src: f.Source(), Dst: dst}
	defer p.cfg.Telemetry.Closed(r)
	snapshot := p.cfg.Catalog.Snapshot()
	switch {
	case snapshot == nil:
		r.Fail(telemetry.NotReady, errNotReady)
		f.Reject()
		return
	case snapshot.Owns(dst.Addr()):
		r.Fail(telemetry.RefusedUDP, errMeshUDP)
		f.Reject()
		return
	}
	r.Cluster = passthrough
	dialing, cancel := context.WithTimeout(ctx, udpDialTimeout)
	defer cancel()
	server, err := p.cfg.Passthrough(dialing, "udp", dst.String())
	if err != nil {
		r.Fail(telemetry.Connect, fmt.Errorf("connect %s: %w", dst, err))
		f.Reject()
		return
	}
	defer server.Close()
	client, err := f.Accept()
	if err != nil {
		r.Fail(telemetry.ClientGone, fmt.Errorf("accept: %w", err))
		return
	}
	defer client.Close()
	r.Upstream = dst.String()
	p.relayUDP(ctx, r, client, server)
}

// isChatter tells what local discovery (mDNS, SSDP, NetBIOS) sends unasked: it
// concerns no one here and is not worth a record.
func isChatter(dst netip.AddrPort) bool {
	a, p := dst.Addr(), dst.Port()
	return a.IsMulticast() || a == broadcast || p == 137 || p == 138
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// relayUDP carries datagrams both ways until either side ends. How long an
// idle flow lives is the client side's decision.
func (p *Proxy) relayUDP(ctx context.Context, r *telemetry.Record, client, server net.Conn) {
	end := func() {
		_ = client.Close()
		_ = server.Close()
	}
	defer context.AfterFunc(ctx, end)()
	var up sync.WaitGroup
	up.Go(func() {
		defer end()
		r.BytesReceived, _ = pumpDatagrams(server, client) // idle, as a rule
	})
	sent, err := pumpDatagrams(client, server)
	end()
	up.Wait()
	r.BytesSent = sent
	switch {
	case ctx.Err() != nil:
		r.Fail(telemetry.Drained, context.Cause(ctx))
	case !errors.Is(err, net.ErrClosed):
		r.Fail(telemetry.UpstreamReset, err) // the server's port is unreachable
	}
}

// pumpDatagrams copies until src ends. It returns the bytes moved. A datagram
// that fills the buffer may have been cut: it is lost, as UDP may lose any,
// and the next one finds room.
func pumpDatagrams(dst io.Writer, src io.Reader) (moved int64, err error) {
	buf := make([]byte, datagram)
	for {
		n, err := src.Read(buf)
		if n == len(buf) && n < maxDatagram {
			buf = make([]byte, maxDatagram)
			continue
		}
		if n > 0 || err == nil { // a datagram may be empty
			// A datagram that cannot be sent now (no route, a full queue, a
			// refusal of the one before) says nothing about the next.
			if _, err := dst.Write(buf[:n]); err == nil {
				moved += int64(n)
			} else if errors.Is(err, net.ErrClosed) {
				return moved, err
			}
		}
		if err != nil {
			return moved, err
		}
	}
}
