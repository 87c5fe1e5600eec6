// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// A server is the other end of a test handshake.
type server struct {
	cert       tls.Certificate
	clientCAs  *x509.CertPool
	maxVersion uint16
	tickets    [32]byte // the key of its session tickets, so that it resumes
}

type outcome struct {
	client, server tls.ConnectionState
	err            error // of the client
}

// shake connects s to srv, moves a byte each way, and tells how it went.
func shake(t testing.TB, s *identity.Store, p identity.Peer, srv server) outcome {
	t.Helper()
	cfg, err := s.Client(p)
	must(t, err)
	near, far, err := pipe()
	must(t, err)
	scfg := &tls.Config{
		Certificates: []tls.Certificate{srv.cert},
		ClientAuth:   tls.RequireAnyClientCert,
		ClientCAs:    srv.clientCAs,
		MaxVersion:   srv.maxVersion,
		NextProtos:   []string{"istio"},
	}
	scfg.SetSessionTicketKeys([][32]byte{srv.tickets})
	peer := tls.Server(far, scfg)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer peer.Close()
		_, _ = io.Copy(peer, io.LimitReader(peer, 1))
	})
	conn := tls.Client(near, cfg)
	_, err = conn.Write([]byte("x")) // which shakes hands first
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	_ = conn.Close()
	wg.Wait()
	return outcome{conn.ConnectionState(), peer.ConnectionState(), err}
}

func TestPeerVerification(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	s := enrolled(t, a)
	good := a.pair(echoID, -time.Minute, time.Hour)
	for _, tc := range []struct {
		name string
		sans func(string) bool
		srv  server
		want error
	}{
		{"the right one", is(echoID), server{cert: good}, nil},
		{"any identity of the mesh", nil, server{cert: good}, nil},
		{"by DNS name", is("db.example"), server{cert: a.pair("db.example", -time.Minute, time.Hour)}, nil},
		{"TLS 1.2, of a FIPS mesh", is(echoID), server{cert: good, maxVersion: tls.VersionTLS12}, nil},
		{"TLS 1.1", is(echoID), server{cert: good, maxVersion: tls.VersionTLS11}, errAny},
		{"wrong SAN", is("spiffe://cluster.local/ns/testing/sa/other"), server{cert: good}, identity.ErrPeerIdentity},
		{"wrong SAN over TLS 1.2", is("x"), server{cert: good, maxVersion: tls.VersionTLS12}, identity.ErrPeerIdentity},
		{"no SAN at all", is(echoID), server{cert: a.pair("", -time.Minute, time.Hour)}, identity.ErrPeerIdentity},
		{"wrong root", is(echoID), server{cert: other.pair(echoID, -time.Minute, time.Hour)}, identity.ErrUntrusted},
		{"wrong root, any identity", nil, server{cert: other.pair(echoID, -time.Minute, time.Hour)}, identity.ErrUntrusted},
		{"expired", is(echoID), server{cert: a.pair(echoID, -time.Hour, -time.Minute)}, identity.ErrUntrusted},
		{"not yet valid", is(echoID), server{cert: a.pair(echoID, time.Minute, time.Hour)}, identity.ErrUntrusted},
		// Go would send no certificate here if it were left to choose one.
		{"server names other issuers", is(echoID), server{cert: good, clientCAs: other.pool()}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := shake(t, s, identity.Peer{SNI: "outbound_.80_._.echo.testing.svc.cluster.local", SANs: tc.sans, ALPN: []string{"istio"}, Key: tc.name}, tc.srv)
			switch {
			case tc.want == errAny && got.err != nil:
			case !errors.Is(got.err, tc.want):
				t.Fatalf("error %v, want %v", got.err, tc.want)
			}
			if got.err != nil {
				return
			}
			if want := uint16(tls.VersionTLS13); tc.srv.maxVersion == 0 && got.client.Version != want {
				t.Errorf("version %x, want TLS 1.3", got.client.Version)
			}
			if got.server.ServerName != "outbound_.80_._.echo.testing.svc.cluster.local" || got.client.NegotiatedProtocol != "istio" {
				t.Errorf("SNI %q, ALPN %q", got.server.ServerName, got.client.NegotiatedProtocol)
			}
			if id := identity.PeerID(&got.server); id != laptopID {
				t.Errorf("the server sees %q, want %q", id, laptopID)
			}
		})
	}
}

var errAny = errors.New("any error")

// A resumed connection skips VerifyPeerCertificate in crypto/tls; who the peer
// is must be asked all the same, since the answer wanted may have changed.
func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			a := newAuthority(t)
			s := enrolled(t, a)
			srv := server{cert: a.pair(echoID, -time.Minute, time.Hour), maxVersion: version}
			peer := identity.Peer{SNI: "echo", SANs: is(echoID), ALPN: []string{"istio"}, Key: "echo/1"}

			if got := shake(t, s, peer, srv); got.err != nil || got.client.DidResume {
				t.Fatalf("first: resumed %v, %v", got.client.DidResume, got.err)
			}
			if got := shake(t, s, peer, srv); got.err != nil || !got.client.DidResume || identity.PeerID(&got.server) != laptopID {
				t.Fatalf("second: resumed %v, client %q, %v", got.client.DidResume, identity.PeerID(&got.server), got.err)
			}
			asked := false
			peer.SANs = func(string) bool { asked = true; return false }
			if got := shake(t, s, peer, srv); !errors.Is(got.err, identity.ErrPeerIdentity) || !asked {
				t.Errorf("resumed with another identity wanted: %v", got.err)
			}
			peer.SANs, peer.Key = is(echoID), "echo/2"
			if got := shake(t, s, peer, srv); got.err != nil || got.client.DidResume {
				t.Errorf("another destination: resumed %v, %v", got.client.DidResume, got.err)
			}
		})
	}
}

// Sessions do not outlive the certificate that they were made with.
func TestRotationDropsSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := enrolled(t, a)
		srv := server{cert: a.pair(echoID, -time.Minute, 48*time.Hour)}
		peer := identity.Peer{SNI: "echo", SANs: is(echoID), ALPN: []string{"istio"}, Key: "echo"}
		shake(t, s, peer, srv)
		if got := shake(t, s, peer, srv); !got.client.DidResume {
			t.Fatal("no resumption before the rotation")
		}
		before := s.Current()
		elapse(13 * time.Hour)
		if s.Current() == before {
			t.Fatal("not rotated")
		}
		got := shake(t, s, peer, srv)
		if got.err != nil || got.client.DidResume {
			t.Errorf("after the rotation: resumed %v, %v", got.client.DidResume, got.err)
		}
		if serial := got.server.PeerCertificates[0].SerialNumber; serial.Cmp(before.TLS.Leaf.SerialNumber) == 0 {
			t.Error("the old certificate was shown")
		}
	})
}

// A config that was made in time does not carry an expired certificate: the
// handshake, which may come much later, looks again.
func TestExpiryBetweenConfigAndHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		ca := &fakeCA{authority: a}
		s, err := identity.New(identity.Config{CA: ca, TTL: time.Hour})
		must(t, err)
		run(t, s.Run)
		<-s.Ready()
		ca.fail(errors.New("gone"))
		cfg, err := s.Client(identity.Peer{SANs: is(echoID)})
		must(t, err)
		elapse(2 * time.Hour)

		near, far, err := pipe()
		must(t, err)
		peer := tls.Server(far, &tls.Config{
			Certificates: []tls.Certificate{a.pair(echoID, -time.Minute, time.Hour)},
			ClientAuth:   tls.RequireAnyClientCert,
		})
		var wg sync.WaitGroup
		wg.Go(func() { _ = peer.Handshake(); _ = peer.Close() })
		err = tls.Client(near, cfg).Handshake()
		_ = near.Close()
		wg.Wait()
		if !errors.Is(err, identity.ErrExpired) {
			t.Errorf("handshake after expiry: %v, want ErrExpired", err)
		}
	})
}

func BenchmarkClient(b *testing.B) {
	s := enrolled(b, newAuthority(b))
	p := identity.Peer{SNI: "outbound_.80_._.echo.testing.svc.cluster.local", SANs: is(echoID), ALPN: []string{"istio"}, Key: "echo"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Client(p); err != nil {
			b.Fatal(err)
		}
	}
}
