// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	securitypb "istio.io/api/security/v1alpha1"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// A fakeIstiod answers on TLS in memory, authenticating as istiod does: a
// client certificate that is shown must verify, and then wins over the token.
type fakeIstiod struct {
	securitypb.UnimplementedIstioCertificateServiceServer
	discoverypb.UnimplementedAggregatedDiscoveryServiceServer
	ca       *authority
	listener *bufconn.Listener
	code     codes.Code    // what every caller gets, if not OK
	longest  time.Duration // MAX_ and DEFAULT_WORKLOAD_CERT_TTL, if not 0

	mu     sync.Mutex
	tokens map[string]bool // accepted
	cert   tls.Certificate // shown
	roots  *x509.CertPool  // of the client certificates accepted
	seen   []caller
}

// A caller is how one call authenticated.
type caller struct{ token, certificate, cluster string }

func newIstiod(t *testing.T, ca *authority) *fakeIstiod {
	f := &fakeIstiod{
		ca:       ca,
		listener: bufconn.Listen(256 << 10),
		tokens:   map[string]bool{"good": true},
		cert:     ca.pair(identity.DefaultServerName, -time.Minute, time.Hour),
		roots:    ca.pool(),
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return &tls.Config{
				Certificates: []tls.Certificate{f.cert},
				ClientAuth:   tls.VerifyClientCertIfGiven,
				ClientCAs:    f.roots,
				NextProtos:   []string{"h2"},
			}, nil
		},
	})))
	securitypb.RegisterIstioCertificateServiceServer(g, f)
	discoverypb.RegisterAggregatedDiscoveryServiceServer(g, f)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(f.listener) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return f
}

func (f *fakeIstiod) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeIstiod) callers() []caller {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]caller(nil), f.seen...)
}

func (f *fakeIstiod) authenticate(ctx context.Context) error {
	var c caller
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		c.token = strings.TrimPrefix(v, "Bearer ")
	}
	c.cluster = strings.Join(md.Get("clusterid"), ",")
	p, _ := peer.FromContext(ctx)
	if info := p.AuthInfo.(credentials.TLSInfo); len(info.State.PeerCertificates) > 0 {
		c.certificate = identity.PeerID(&info.State)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, c)
	if f.code != codes.OK {
		return status.Error(f.code, "as the test says")
	}
	if c.certificate == "" && !f.tokens[c.token] {
		return status.Error(codes.Unauthenticated, "authentication failure")
	}
	return nil
}

func (f *fakeIstiod) CreateCertificate(ctx context.Context, r *securitypb.IstioCertificateRequest) (*securitypb.IstioCertificateResponse, error) {
	if err := f.authenticate(ctx); err != nil {
		return nil, err
	}
	life := time.Duration(r.GetValidityDuration()) * time.Second
	if f.longest != 0 && life > f.longest {
		return nil, status.Errorf(codes.InvalidArgument, "CSR signing error (requested TTL %v is greater than the max allowed TTL %v)", life, f.longest)
	}
	if life == 0 {
		life = f.longest
	}
	chain, roots, err := f.ca.sign([]byte(r.GetCsr()), laptopID, life)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, pem := range append(chain, roots...) {
		all = append(all, string(pem))
	}
	return &securitypb.IstioCertificateResponse{CertChain: all}, nil
}

func (f *fakeIstiod) DeltaAggregatedResources(s discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if err := f.authenticate(s.Context()); err != nil {
		return err
	}
	return s.Send(&discoverypb.DeltaDiscoveryResponse{Nonce: "1"})
}

// config returns what reaches f with the token "good".
func (f *fakeIstiod) config() identity.IstiodConfig {
	return identity.IstiodConfig{
		Address:   "10.0.0.1:15012",
		Roots:     func() ([]byte, error) { return f.ca.pem(), nil },
		Token:     func(context.Context) (string, error) { return "good", nil },
		ClusterID: "Kubernetes",
		Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return f.listener.DialContext(ctx)
		},
	}
}

func dial(t *testing.T, cfg identity.IstiodConfig) *grpc.ClientConn {
	t.Helper()
	conn, err := identity.Dial(cfg)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask makes one call of each kind, for a certificate and for configuration.
// Both see the same channel, so both must tell the same reason.
func ask(t *testing.T, conn *grpc.ClientConn) (ca, ads error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, csr := request(t)
	_, _, ca = identity.NewIstioCA(conn).Sign(ctx, csr, time.Hour)
	s, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return ca, err
	}
	_, ads = s.Recv()
	return ca, ads
}

func constant(token string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return token, nil }
}

// jwt is a token that only says when it expires.
func jwt(expiry time.Time) string {
	return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, expiry.Unix())) + ".c2ln"
}
