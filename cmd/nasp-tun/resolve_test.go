// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/nasp-tun/nasp-tun/mesh/dns"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// resolver answers every question for an address with its own.
func resolver(t *testing.T, answer string) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &mdns.Server{PacketConn: pc, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		a := new(mdns.Msg).SetReply(q)
		rr, err := mdns.NewRR(q.Question[0].Name + " 1 IN A " + answer)
		if err != nil {
			t.Error(err)
		}
		a.Answer = append(a.Answer, rr)
		_ = w.WriteMsg(a)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ActivateAndServe() })
	t.Cleanup(func() {
		_ = pc.Close()
		wg.Wait()
	})
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// The server that CMD asked is asked only if that is wanted, and never when it
// is our own address.
func TestWhoIsAskedOutsideTheMesh(t *testing.T) {
	hosts, theirs := resolver(t, "203.0.113.1"), resolver(t, "203.0.113.2")
	d := &host.Dialer{}
	for _, tt := range []struct {
		name        string
		asked       netip.AddrPort
		passthrough bool
		want        string
	}{
		{"by default", theirs, false, "203.0.113.1"},
		{"passed through", theirs, true, "203.0.113.2"},
		{"our own resolver", netip.AddrPortFrom(host.ResolverAddr, dnsPort), true, "203.0.113.1"},
		{"a stub socket", netip.AddrPort{}, true, "203.0.113.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNames(d, tt.passthrough)
			n.forwarder = dns.NewForwarder(func() []netip.AddrPort { return []netip.AddrPort{hosts} }, d.DialContext)
			ctx := t.Context()
			if tt.asked.IsValid() {
				ctx = withAsked(ctx, tt.asked)
			}
			q := new(mdns.Msg).SetQuestion("www.example.com.", mdns.TypeA)
			a, err := n.forward(ctx, q, false)
			if err != nil {
				t.Fatal(err)
			}
			if rr, ok := a.Answer[0].(*mdns.A); !ok || rr.A.String() != tt.want {
				t.Errorf("got %v, want %s", a.Answer, tt.want)
			}
		})
	}
}
