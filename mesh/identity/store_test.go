// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

func TestCertificateIsLearnt(t *testing.T) {
	c := enrolled(t, newAuthority(t)).Current()
	if c.ID != laptopID || c.TrustDomain != "cluster.local" {
		t.Errorf("identity %q of %q", c.ID, c.TrustDomain)
	}
	if c.Serial == "" || c.TLS.Leaf == nil || !c.Valid(time.Now()) {
		t.Errorf("certificate is incomplete: %+v", c)
	}
}

func TestRenewalAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &fakeCA{authority: newAuthority(t)}
		var changes []*identity.Certificate
		s, err := identity.New(identity.Config{CA: ca, OnChange: func(c *identity.Certificate) { changes = append(changes, c) }})
		must(t, err)
		run(t, s.Run)
		<-s.Ready()
		first := s.Current()

		elapse(11*time.Hour + 40*time.Minute)
		if s.Current() != first {
			t.Fatal("renewed before half of the life was over")
		}
		elapse(40 * time.Minute) // 12 h 20 min: past 0.51 of 24 h
		second := s.Current()
		if second == first {
			t.Fatal("not renewed after half of the life")
		}
		if second.TLS.PrivateKey == first.TLS.PrivateKey {
			t.Error("the key was kept; each certificate has its own")
		}
		if !slices.Equal(changes, []*identity.Certificate{first, second}) {
			t.Errorf("OnChange told of %d certificates, want the two in order", len(changes))
		}
	})
}

// A failing CA costs nothing while the certificate lives, and everything
// after: fail closed. When it is back, so are we.
func TestRenewalFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &fakeCA{authority: newAuthority(t)}
		var log logRecorder
		s, err := identity.New(identity.Config{CA: ca, Logger: log.logger()})
		must(t, err)
		run(t, s.Run)
		<-s.Ready()
		first := s.Current()
		ca.fail(status.Error(codes.Unavailable, "gone"))

		elapse(23*time.Hour + 50*time.Minute)
		if _, err := s.Client(identity.Peer{}); err != nil || s.Current() != first {
			t.Errorf("certificate not kept while valid: %v", err)
		}
		if at, err := s.LastError(); status.Code(err) != codes.Unavailable || time.Since(at) > 2*time.Minute {
			t.Errorf("LastError = %v, %v", at, err)
		}
		calls := ca.count()
		if calls < 100 || calls > 1500 {
			t.Errorf("%d requests in 12 hours of failure, want about one a minute", calls)
		}

		elapse(15 * time.Minute)
		if _, err := s.Client(identity.Peer{}); !errors.Is(err, identity.ErrExpired) {
			t.Errorf("after expiry Client returns %v, want ErrExpired", err)
		}
		if s.ClientCertificate() != nil {
			t.Error("an expired certificate is offered")
		}
		if w, e := log.count("level=WARN"), log.count("level=ERROR"); w != 1 || e != 1 {
			t.Errorf("%d warnings and %d errors for one outage, want one of each", w, e)
		}

		ca.fail(nil)
		elapse(2 * time.Minute)
		if _, err := s.Client(identity.Peer{}); err != nil {
			t.Errorf("not well again: %v", err)
		}
		if _, err := s.LastError(); err != nil {
			t.Errorf("LastError after success: %v", err)
		}
	})
}

func TestRetries(t *testing.T) {
	for _, tc := range []struct {
		name     string
		err      error
		within   time.Duration
		min, max int
	}{
		{"transient errors are retried fast", status.Error(codes.Unavailable, "no"), 4 * time.Second, 6, 6},
		{"then slowly", status.Error(codes.Unavailable, "no"), 10 * time.Minute, 14, 24},
		{"a refused token is not retried at once", status.Error(codes.Unauthenticated, "no"), 3 * time.Second, 1, 1},
		{"but for ever", status.Error(codes.Unauthenticated, "no"), time.Hour, 55, 90},
		{"nor is a bad answer", identity.ErrBadCertificate, 3 * time.Second, 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := &fakeCA{authority: newAuthority(t), err: tc.err}
				s, err := identity.New(identity.Config{CA: ca})
				must(t, err)
				run(t, s.Run)
				elapse(tc.within)
				if n := ca.count(); n < tc.min || n > tc.max {
					t.Errorf("%d attempts in %v, want %d to %d", n, tc.within, tc.min, tc.max)
				}
				if _, err := s.Client(identity.Peer{}); !errors.Is(err, identity.ErrNoIdentity) || !errors.Is(err, tc.err) {
					t.Errorf("Client returns %v, want ErrNoIdentity and its cause", err)
				}
			})
		})
	}
}

// A CA that never answers is given up, asked again, and does not hold up the
// end of Run.
func TestSilentCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s, err := identity.New(identity.Config{CA: caFunc(func(ctx context.Context, _ []byte) ([][]byte, [][]byte, error) {
			asked++
			<-ctx.Done()
			return nil, nil, ctx.Err()
		})})
		must(t, err)
		run(t, s.Run)
		elapse(time.Minute)
		if asked < 3 || asked > 5 {
			t.Errorf("asked %d times in a minute, want 15 s each", asked)
		}
	})
}

// caFunc is a CA that ignores the ttl.
type caFunc func(ctx context.Context, csr []byte) (chain, roots [][]byte, err error)

func (f caFunc) Sign(ctx context.Context, csr []byte, _ time.Duration) (chain, roots [][]byte, err error) {
	return f(ctx, csr)
}

func TestBadAnswers(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	good := func(csr []byte) ([][]byte, [][]byte) {
		chain, roots, err := a.sign(csr, laptopID, time.Hour)
		must(t, err)
		return chain, roots
	}
	forKey := func(from, until time.Duration) [][]byte {
		return [][]byte{certPEM(a.leaf(newKey(t).Public(), laptopID, from, until))}
	}
	for _, tc := range []struct {
		name   string
		answer func(csr []byte) (chain, roots [][]byte)
	}{
		{"another key", func([]byte) ([][]byte, [][]byte) { return forKey(-time.Minute, time.Hour), [][]byte{a.pem()} }},
		{"another root", func(csr []byte) ([][]byte, [][]byte) {
			chain, _ := good(csr)
			return chain, [][]byte{other.pem()}
		}},
		{"no SPIFFE ID", func(csr []byte) ([][]byte, [][]byte) {
			chain, roots, err := a.sign(csr, "host.example", time.Hour)
			must(t, err)
			return chain, roots
		}},
		{"expired", func(csr []byte) ([][]byte, [][]byte) {
			chain, roots, err := a.sign(csr, laptopID, -time.Minute)
			must(t, err)
			return chain, roots
		}},
		{"no roots", func(csr []byte) ([][]byte, [][]byte) { chain, _ := good(csr); return chain, nil }},
		{"no chain", func(csr []byte) ([][]byte, [][]byte) { _, roots := good(csr); return nil, roots }},
		{"garbage", func(csr []byte) ([][]byte, [][]byte) {
			_, roots := good(csr)
			return [][]byte{[]byte("hello")}, roots
		}},
		{"a key among the certificates", func(csr []byte) ([][]byte, [][]byte) {
			_, roots := good(csr)
			return [][]byte{[]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")}, roots
		}},
		{"endless chain", func(csr []byte) ([][]byte, [][]byte) {
			chain, roots := good(csr)
			return slices.Repeat(chain, 17), roots
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := identity.New(identity.Config{CA: caFunc(func(_ context.Context, csr []byte) ([][]byte, [][]byte, error) {
					chain, roots := tc.answer(csr)
					return chain, roots, nil
				})})
				must(t, err)
				run(t, s.Run)
				synctest.Wait()
				if _, err := s.LastError(); !errors.Is(err, identity.ErrBadCertificate) {
					t.Errorf("LastError = %v, want ErrBadCertificate", err)
				}
				if s.Current() != nil {
					t.Error("the answer was used")
				}
			})
		})
	}
}

// One element of the answer may hold several certificates: intermediates, and
// the roots of a mesh that is changing its CA.
func TestRootBundle(t *testing.T) {
	a, next := newAuthority(t), newAuthority(t)
	s, err := identity.New(identity.Config{CA: caFunc(func(_ context.Context, csr []byte) ([][]byte, [][]byte, error) {
		chain, _, err := a.sign(csr, laptopID, time.Hour)
		return chain, [][]byte{slices.Concat(next.pem(), a.pem())}, err
	})})
	must(t, err)
	run(t, s.Run)
	<-s.Ready()
	for _, signer := range []*authority{a, next} {
		if err := shake(t, s, identity.Peer{}, server{cert: signer.pair(echoID, -time.Minute, time.Hour)}).err; err != nil {
			t.Errorf("peer of one of the two roots: %v", err)
		}
	}
}

// Some CAs compare the name in a request with the credential.
func TestNameInRequest(t *testing.T) {
	a := newAuthority(t)
	var got *x509.CertificateRequest
	s, err := identity.New(identity.Config{ID: laptopID, CA: caFunc(func(_ context.Context, csr []byte) ([][]byte, [][]byte, error) {
		block, _ := pem.Decode(csr)
		r, err := x509.ParseCertificateRequest(block.Bytes)
		must(t, err)
		got = r
		return a.sign(csr, laptopID, time.Hour)
	})})
	must(t, err)
	run(t, s.Run)
	<-s.Ready()
	if len(got.URIs) != 1 || got.URIs[0].String() != laptopID || got.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("request for %v with %v", got.URIs, got.PublicKeyAlgorithm)
	}
	if c := s.ClientCertificate(); c != &s.Current().TLS {
		t.Error("the certificate is not the one offered to istiod")
	}
}

func TestNewChecks(t *testing.T) {
	ca := &fakeCA{}
	for _, cfg := range []identity.Config{
		{},
		{CA: ca, TTL: time.Millisecond},
		{CA: ca, ID: "cluster.local/ns/a/sa/b"},
	} {
		if _, err := identity.New(cfg); err == nil {
			t.Errorf("New(%+v) accepts", cfg)
		}
	}
}
