// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

const echoID = "spiffe://cluster.local/ns/testing/sa/echo"

// secured is a mesh whose one service is behind mutual TLS, and us with an
// identity, or without.
func secured(t *testing.T, id *identity.Store) *rig {
	t.Helper()
	c := static("outbound|9000||echo", "10.0.0.1:9000")
	c.Transport = resource.Transport{
		Kind: resource.IstioMTLS, Name: "tlsMode-istio", SNI: "outbound_.9000_._.echo", ALPN: []string{"istio"},
		SANs: []resource.SANMatch{{Exact: echoID}},
	}
	var r *rig
	r = newRig(t, func(cfg *proxy.Config) {
		cfg.Upstream = upstream.New(upstream.Config{Identity: id, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return r.dialer("mesh")(ctx, network, address)
		}})
	}, c, echoOnVIP)
	return r
}

// serverOf answers the handshake of the next connection.
func serverOf(t *testing.T, r *rig, cfg *tls.Config) (*tls.Conn, *memConn, error) {
	t.Helper()
	raw := <-r.servers
	s := tls.Server(raw, cfg)
	return s, raw, s.HandshakeContext(t.Context())
}

func TestMutualTLS(t *testing.T) {
	ca := upstreamtest.NewAuthority(t)
	r := secured(t, ca.Store(0))
	f := r.connect(vip)
	server, _, err := serverOf(t, r, ca.Server(echoID))
	if err != nil {
		t.Fatal(err)
	}
	if got := server.ConnectionState().ServerName; got != "outbound_.9000_._.echo" {
		t.Errorf("SNI %s", got)
	}
	big := strings.Repeat("0123456789abcdef", 20_000)
	go send(t, server, big) // gathered from several records, in order
	expect(t, f.client, big)
	send(t, f.client, "bye")
	_ = f.client.CloseWrite()
	expect(t, server, "bye")
	expectEnd(t, server, io.EOF)
	send(t, server, "last")
	_ = server.CloseWrite()
	expect(t, f.client, "last")
	expectEnd(t, f.client, io.EOF)
	f.client.Close()
	m := r.record()
	if m["security"] != "mutual_tls" || m["peer"] != echoID || m["reason"] != nil {
		t.Errorf("record %v", m)
	}
}

// An end that TLS does not announce may be an attacker's: the client must not
// take the data for whole.
func TestTruncationIsAReset(t *testing.T) {
	ca := upstreamtest.NewAuthority(t)
	r := secured(t, ca.Store(0))
	f := r.connect(vip)
	server, raw, err := serverOf(t, r, ca.Server(echoID))
	if err != nil {
		t.Fatal(err)
	}
	send(t, server, "half of it")
	expect(t, f.client, "half of it")
	_ = raw.CloseWrite()
	expectEnd(t, f.client, syscall.ECONNRESET)
	r.expectReason("upstream_reset")
}

func TestHandshakesThatFail(t *testing.T) {
	ca := upstreamtest.NewAuthority(t)
	t.Run("another identity", func(t *testing.T) {
		r := secured(t, ca.Store(0))
		f := r.connect(vip)
		_, _, _ = serverOf(t, r, ca.Server("spiffe://cluster.local/ns/testing/sa/mallory"))
		<-f.rejected
		r.expectReason("tls_identity")
	})
	t.Run("another mesh", func(t *testing.T) {
		r := secured(t, ca.Store(0))
		f := r.connect(vip)
		_, _, _ = serverOf(t, r, upstreamtest.NewAuthority(t).Server(echoID))
		<-f.rejected
		r.expectReason("tls_identity")
	})
	t.Run("a server that speaks no TLS", func(t *testing.T) {
		r := secured(t, ca.Store(0))
		f := r.connect(vip)
		send(t, <-r.servers, "HTTP/1.1 400 Bad Request\r\n\r\n")
		<-f.rejected
		r.expectReason("tls")
	})
	t.Run("a server that does not take our certificate", func(t *testing.T) {
		r := secured(t, ca.Store(0))
		f := r.connect(vip)
		cfg := ca.Server(echoID)
		cfg.ClientCAs = nil // trusts nobody
		_, raw, err := serverOf(t, r, cfg)
		if err == nil {
			t.Fatal("the server took it")
		}
		raw.Close()
		expectEnd(t, f.client, syscall.ECONNRESET)
		r.expectReason("tls")
	})
	t.Run("no certificate of our own", func(t *testing.T) {
		id, err := identity.New(identity.Config{CA: ca})
		if err != nil {
			t.Fatal(err)
		}
		r := secured(t, id)
		f := r.connect(vip)
		<-f.rejected
		r.expectReason("no_identity")
		r.expectEvents("reject") // and nothing was dialled
	})
}
