// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securitypb "istio.io/api/security/v1alpha1"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

func TestIstiodErrors(t *testing.T) {
	type state struct {
		*fakeIstiod
		cfg identity.IstiodConfig
	}
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, s *state)
		want   error
		code   codes.Code
	}{
		{"all is well", func(*testing.T, *state) {}, nil, codes.OK},
		{"wrong root", func(t *testing.T, s *state) {
			other := newAuthority(t)
			s.cfg.Roots = func() ([]byte, error) { return other.pem(), nil }
		}, identity.ErrUntrusted, codes.Unavailable},
		{"root file is gone", func(_ *testing.T, s *state) {
			s.cfg.Roots = func() ([]byte, error) { return nil, errAny }
		}, errAny, codes.Unavailable},
		{"root file is empty", func(_ *testing.T, s *state) {
			s.cfg.Roots = func() ([]byte, error) { return nil, nil }
		}, identity.ErrUntrusted, codes.Unavailable},
		{"wrong name", func(_ *testing.T, s *state) { s.cfg.ServerName = "istiod-canary.istio-system.svc" }, identity.ErrUntrusted, codes.Unavailable},
		{"istiod's certificate expired", func(_ *testing.T, s *state) {
			s.cert = s.ca.pair(identity.DefaultServerName, -time.Hour, -time.Minute)
		}, identity.ErrUntrusted, codes.Unavailable},
		{"nothing listens", func(_ *testing.T, s *state) {
			s.cfg.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errAny }
		}, identity.ErrUnreachable, codes.Unavailable},
		{"hangs up", func(_ *testing.T, s *state) {
			s.cfg.Dialer = func(context.Context, string, string) (net.Conn, error) {
				near, far, err := pipe()
				return near, errors.Join(err, far.Close())
			}
		}, identity.ErrUnreachable, codes.Unavailable},
		{"hangs up after the handshake", func(t *testing.T, s *state) {
			var wg sync.WaitGroup
			t.Cleanup(wg.Wait)
			s.cfg.Dialer = func(context.Context, string, string) (net.Conn, error) {
				near, far, err := pipe()
				wg.Go(func() {
					c := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{s.cert}, NextProtos: []string{"h2"}})
					_ = c.Handshake()
					_ = c.Close()
				})
				return near, err
			}
		}, identity.ErrUnreachable, codes.Unavailable},
		{"does not speak TLS", func(_ *testing.T, s *state) {
			s.cfg.Dialer = func(context.Context, string, string) (net.Conn, error) {
				near, far, err := pipe()
				_, werr := far.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				return near, errors.Join(err, werr)
			}
		}, identity.ErrUnreachable, codes.Unavailable},
		{"token refused", func(_ *testing.T, s *state) { s.tokens = nil }, identity.ErrTokenRefused, codes.Unauthenticated},
		{"source of tokens fails", func(_ *testing.T, s *state) {
			s.cfg.Token = func(context.Context) (string, error) { return "", errAny }
		}, identity.ErrNoToken, codes.Unauthenticated},
		{"token expired, as it says itself", func(_ *testing.T, s *state) {
			s.cfg.Token = func(context.Context) (string, error) { return jwt(time.Now().Add(-time.Minute)), nil }
		}, identity.ErrNoToken, codes.Unauthenticated},
		{"token with a line break", func(_ *testing.T, s *state) {
			s.cfg.Token = func(context.Context) (string, error) { return "good\n", nil }
		}, identity.ErrNoToken, codes.Unauthenticated},
		{"no credential at all", func(_ *testing.T, s *state) { s.cfg.Token = nil }, identity.ErrNoToken, codes.Unauthenticated},
		{"another namespace", func(_ *testing.T, s *state) { s.code = codes.PermissionDenied }, identity.ErrForbidden, codes.PermissionDenied},
		{"certificate refused", func(t *testing.T, s *state) {
			s.cfg.Token = nil
			cert := newAuthority(t).pair(laptopID, -time.Minute, time.Hour)
			s.cfg.Certificate = func() *tls.Certificate { return &cert }
		}, identity.ErrCertificateRefused, codes.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newIstiod(t, newAuthority(t))
			s := &state{f, f.config()}
			f.set(func() { tc.change(t, s) })
			ca, ads := ask(t, dial(t, s.cfg))
			for path, err := range map[string]error{"certificate": ca, "configuration": ads} {
				if !errors.Is(err, tc.want) || status.Code(err) != tc.code {
					t.Errorf("%s: %v (%v), want %v (%v)", path, err, status.Code(err), tc.want, tc.code)
				}
			}
		})
	}
}

// Token first, the certificate where there is none that istiod takes; and an
// expired certificate never, since it would break the handshake.
func TestIstiodCredentials(t *testing.T) {
	byToken := caller{"good", "", "Kubernetes"}
	byCertificate := caller{"", laptopID, "Kubernetes"}
	for _, tc := range []struct {
		name   string
		token  func(context.Context) (string, error)
		expire time.Duration // of the certificate, from now; 0: there is none
		want   caller        // of the call that succeeds
		calls  int           // that istiod sees until then
	}{
		{"token alone", constant("good"), 0, byToken, 1},
		{"token with a certificate", constant("good"), time.Hour, byToken, 1},
		{"certificate alone", nil, time.Hour, byCertificate, 1},
		{"no token to be had", func(context.Context) (string, error) { return "", errAny }, time.Hour, byCertificate, 1},
		{"token expired", func(context.Context) (string, error) { return jwt(time.Now().Add(-time.Second)), nil }, time.Hour, byCertificate, 1},
		{"token refused", constant("bad"), time.Hour, byCertificate, 2},
		{"certificate expired", constant("good"), -time.Minute, byToken, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newIstiod(t, newAuthority(t))
			cfg := f.config()
			cfg.Token = tc.token
			if tc.expire != 0 {
				cert := f.ca.pair(laptopID, -time.Hour, tc.expire)
				cfg.Certificate = func() *tls.Certificate { return &cert }
			}
			conn := dial(t, cfg)
			_, csr := request(t)
			// A refused token ends the connection, and calls that still find it
			// ending are to be repeated.
			err := status.Error(codes.Unavailable, "not yet")
			for status.Code(err) == codes.Unavailable {
				_, _, err = identity.NewIstioCA(conn).Sign(t.Context(), csr, time.Hour)
			}
			must(t, err)
			seen := f.callers()
			if len(seen) != tc.calls || seen[len(seen)-1] != tc.want {
				t.Errorf("istiod saw %+v, want %+v at call %d", seen, tc.want, tc.calls)
			}
		})
	}
}

// A source of tokens that dries up while a connection is open.
func TestTokenGoneLater(t *testing.T) {
	f := newIstiod(t, newAuthority(t))
	cert := f.ca.pair(laptopID, -time.Hour, time.Hour)
	var mu sync.Mutex
	source := error(nil)
	cfg := f.config()
	cfg.Token = func(context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return "good", source
	}
	cfg.Certificate = func() *tls.Certificate { return &cert }
	conn := dial(t, cfg)
	_, csr := request(t)
	sign := func() error {
		_, _, err := identity.NewIstioCA(conn).Sign(t.Context(), csr, time.Hour)
		return err
	}
	must(t, sign())
	mu.Lock()
	source = errAny
	mu.Unlock()
	if err := sign(); !errors.Is(err, identity.ErrNoToken) || status.Code(err) != codes.Unavailable {
		t.Errorf("call on the connection of the token: %v, want ErrNoToken and to be repeated", err)
	}
	err := sign()
	for status.Code(err) == codes.Unavailable {
		err = sign()
	}
	must(t, err)
	if seen := f.callers(); seen[len(seen)-1].certificate != laptopID {
		t.Errorf("istiod saw %+v, want the certificate last", seen)
	}
}

// Roots are read at each handshake, so a mesh whose root changed is found
// again by changing the file.
func TestRootReload(t *testing.T) {
	f := newIstiod(t, newAuthority(t))
	var mu sync.Mutex
	roots := newAuthority(t).pem()
	cfg := f.config()
	cfg.Roots = func() ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		return roots, nil
	}
	conn := dial(t, cfg)
	if ca, _ := ask(t, conn); !errors.Is(ca, identity.ErrUntrusted) {
		t.Fatalf("with another root: %v", ca)
	}
	mu.Lock()
	roots = f.ca.pem()
	mu.Unlock()
	_, csr := request(t)
	client := securitypb.NewIstioCertificateServiceClient(conn)
	_, err := client.CreateCertificate(t.Context(), &securitypb.IstioCertificateRequest{Csr: string(csr)}, grpc.WaitForReady(true))
	must(t, err)
}

func TestServerName(t *testing.T) {
	for address, want := range map[string]string{
		"istiod.istio-system.svc:15012":        "istiod.istio-system.svc",
		"istiod-canary.istio-system.svc:15012": "istiod-canary.istio-system.svc",
		"localhost:15012":                      identity.DefaultServerName,
		"127.0.0.1:15012":                      identity.DefaultServerName,
		"[fd00::1]:15012":                      identity.DefaultServerName,
	} {
		t.Run(address, func(t *testing.T) {
			f := newIstiod(t, newAuthority(t))
			f.set(func() { f.cert = f.ca.pair(want, -time.Minute, time.Hour) })
			cfg := f.config()
			cfg.Address = address
			ca, _ := ask(t, dial(t, cfg))
			must(t, ca)
		})
	}
}

func TestDialChecks(t *testing.T) {
	roots := func() ([]byte, error) { return nil, nil }
	for _, cfg := range []identity.IstiodConfig{
		{Address: "istiod", Roots: roots},
		{Address: "istiod:15012"},
		{Address: "istiod:15012", Roots: roots},
	} {
		if _, err := identity.Dial(cfg); err == nil {
			t.Errorf("Dial(%+v) accepts", cfg.Address)
		}
	}
}

// istiod's answer must hold a certificate and, apart from it, the roots.
func TestShortAnswer(t *testing.T) {
	for n := range 2 {
		ca := identity.NewIstioCA(invoke(func(reply any) {
			reply.(*securitypb.IstioCertificateResponse).CertChain = make([]string, n)
		}))
		if _, _, err := ca.Sign(t.Context(), nil, time.Hour); !errors.Is(err, identity.ErrBadCertificate) {
			t.Errorf("answer of %d elements: %v", n, err)
		}
	}
}

// An istiod with MAX_WORKLOAD_CERT_TTL below what we ask for refuses the
// request; what it gives unasked is good enough.
func TestLongestLifeOfTheMeshIsAccepted(t *testing.T) {
	const longest = 2 * time.Minute
	ca := newAuthority(t)
	f := newIstiod(t, ca)
	f.longest = longest
	_, csr := request(t)
	chain, _, err := identity.NewIstioCA(dial(t, f.config())).Sign(t.Context(), csr, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(chain[0])
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(leaf.NotAfter); life > longest {
		t.Errorf("got a life of %v, want the mesh's %v", life, longest)
	}
}

// A request that is wrong otherwise is refused as it was at first.
func TestBadRequestIsRefusedAsItWas(t *testing.T) {
	f := newIstiod(t, newAuthority(t))
	f.code = codes.InvalidArgument
	_, csr := request(t)
	_, _, err := identity.NewIstioCA(dial(t, f.config())).Sign(t.Context(), csr, time.Hour)
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
	if n := len(f.callers()); n != 2 {
		t.Errorf("asked %d times, want 2", n)
	}
}

// invoke is a channel on which every call succeeds with what it fills in.
type invoke func(reply any)

func (f invoke) Invoke(_ context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	f(reply)
	return nil
}

func (invoke) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.ErrUnsupported
}

// A source of tokens that hangs holds up nothing for ever.
func TestSilentTokenSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIstiod(t, newAuthority(t))
		cfg := f.config()
		cfg.Token = func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}
		_, err := discoverypb.NewAggregatedDiscoveryServiceClient(dial(t, cfg)).DeltaAggregatedResources(t.Context())
		if !errors.Is(err, identity.ErrNoToken) {
			t.Errorf("stream: %v", err)
		}
	})
}

// A peer that accepts and never speaks is given up, and said to be unreachable.
func TestSilentIstiod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIstiod(t, newAuthority(t))
		cfg := f.config()
		cfg.Dialer = func(context.Context, string, string) (net.Conn, error) {
			near, _, err := pipe()
			return near, err
		}
		began := time.Now()
		ca, ads := ask(t, dial(t, cfg))
		if !errors.Is(ca, identity.ErrUnreachable) || !errors.Is(ads, identity.ErrUnreachable) {
			t.Errorf("certificate: %v; configuration: %v", ca, ads)
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("known after %v", d)
		}
	})
}
