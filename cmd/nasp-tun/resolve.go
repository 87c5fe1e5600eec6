// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/netip"

	mdns "github.com/miekg/dns"

	"github.com/nasp-tun/nasp-tun/mesh/dns"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// names is how this session finds what the mesh does not know: by the host's
// resolvers, from the host's own sockets, so that a VPN's split DNS still holds.
type names struct {
	resolvers *host.Resolvers
	dialer    *host.Dialer
	system    *net.Resolver // for the names of clusters
	forwarder *dns.Forwarder
	// passthrough asks the server that CMD asked. Our own address stands for
	// the host's resolvers even then.
	passthrough bool
}

func newNames(d *host.Dialer, passthrough bool) *names {
	r := host.NewResolvers("")
	return &names{
		resolvers: r, dialer: d, passthrough: passthrough,
		system:    &net.Resolver{PreferGo: true, Dial: d.DialContext},
		forwarder: dns.NewForwarder(r.Servers, d.DialContext),
	}
}

// lookup resolves the name of a DNS cluster.
func (n *names) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return n.system.LookupNetIP(ctx, "ip", name)
}

// forward asks outside what the mesh does not know.
func (n *names) forward(ctx context.Context, q *mdns.Msg, tcp bool) (*mdns.Msg, error) {
	if server, ok := asked(ctx); ok && n.passthrough && !own(server.Addr()) {
		one := dns.NewForwarder(func() []netip.AddrPort { return []netip.AddrPort{server} }, n.dialer.DialContext)
		return one.Forward(ctx, q, tcp)
	}
	return n.forwarder.Forward(ctx, q, tcp)
}
