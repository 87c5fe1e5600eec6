// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"net"
	"strings"
	"syscall"
	"time"
)

// MarkOwn is the mark that a host-wide capture lets pass. The high byte alone
// is matched; Tailscale, wg-quick, netbird and kube-proxy use other bits.
const MarkOwn = 0x4e000001

// Keepalive of upstream connections. Nothing here ends an idle connection, so
// a peer that vanished must be noticed: after 60 s of silence nine probes 30 s
// apart, short of what NATs and load balancers forget (the kernel's default is
// two hours).
const (
	keepAliveIdle     = 60 * time.Second
	keepAliveInterval = 30 * time.Second
	keepAliveCount    = 9
)

// defaultConnectTimeout bounds a dial whose context has no deadline of its own.
const defaultConnectTimeout = 10 * time.Second

// A Dialer opens the sockets by which nasp-tun reaches the network; nothing
// else does. The zero Dialer suits a private network, whose TUN is not in the
// way of the parent. It is safe for concurrent use.
type Dialer struct {
	Mark    uint32        // SO_MARK before connect, so that a host-wide capture lets it pass; 0: none
	Timeout time.Duration // of a connect without a nearer deadline; 0: 10 s
}

// DialContext connects as [net.Dialer.DialContext] does, with keepalive and, if
// set, the mark. A mark that cannot be set fails the dial: an unmarked packet
// would enter our own tunnel again.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n := net.Dialer{
		Timeout: d.Timeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
		},
		ControlContext: d.control,
	}
	if n.Timeout == 0 {
		n.Timeout = defaultConnectTimeout
	}
	if d.Mark != 0 {
		// Looking up a name must not enter the tunnel either.
		n.Resolver = &net.Resolver{PreferGo: true, Dial: d.DialContext}
	}
	return n.DialContext(ctx, network, address)
}

// ListenPacket opens an unconnected socket, for UDP flows that talk to many.
func (d *Dialer) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	l := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		return d.control(ctx, network, address, c)
	}}
	return l.ListenPacket(ctx, network, address)
}

func (d *Dialer) control(_ context.Context, network, _ string, c syscall.RawConn) error {
	if d.Mark != 0 {
		if err := markSocket(c, d.Mark); err != nil {
			return err
		}
	}
	if strings.HasPrefix(network, "tcp") {
		return tuneTCP(c)
	}
	return nil
}
