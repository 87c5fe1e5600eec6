// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securitypb "istio.io/api/security/v1alpha1"
)

// ServerName is the name that istiod's certificate bears, whatever address it
// is dialled at.
const ServerName = "istiod.istio-system.svc"

// serverNames are the DNS names of istiod's certificate.
var serverNames = []string{ServerName, "istiod-remote.istio-system.svc", "istio-pilot.istio-system.svc"}

const (
	// minPing is istiod's: who pings faster is told to go away.
	minPing = 15 * time.Second
	// maxMessage is istiod's ISTIO_GPRC_MAXRECVMSGSIZE.
	maxMessage = 4 << 20
)

// A caller is the identity behind a call to istiod.
type caller struct{ namespace, account string }

// StartIstiod opens istiod again after [Mesh.StopIstiod], on the same address.
func (m *Mesh) StartIstiod() error {
	m.istiodMu.Lock()
	defer m.istiodMu.Unlock()
	if m.closed.Load() {
		return errClosed
	}
	if m.istiod != nil {
		return nil
	}
	listen := m.cfg.Listen
	if m.istiodAddr.IsValid() {
		listen = m.istiodAddr
	}
	ln, err := net.Listen("tcp", listen.String())
	if err != nil {
		return fmt.Errorf("listen for istiod: %w", err)
	}
	m.istiodAddr = addrPort(ln.Addr())
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(m.istiodTLS())),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: m.cfg.ConnectionAge}),
	)
	discoverypb.RegisterAggregatedDiscoveryServiceServer(s, &adsServer{mesh: m})
	securitypb.RegisterIstioCertificateServiceServer(s, &caServer{mesh: m})
	m.istiod = s
	m.wg.Go(func() {
		if err := s.Serve(ln); err != nil {
			m.logger.Error("istiod ended", "err", err)
		}
	})
	return nil
}

// StopIstiod cuts every stream and closes the address. The workloads live on.
func (m *Mesh) StopIstiod() {
	m.istiodMu.Lock()
	defer m.istiodMu.Unlock()
	if m.istiod != nil {
		m.istiod.Stop()
		m.istiod = nil
	}
}

// istiodTLS takes client certificates but does not demand them; an invalid one
// breaks the handshake, as with istiod.
func (m *Mesh) istiodTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  m.authority.pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return m.authority.issue(names{dns: serverNames}, defaultCertTTL)
		},
	}
}

// authenticate tells who calls: by certificate, else by token, as istiod asks
// its authenticators in turn.
func (m *Mesh) authenticate(ctx context.Context) (caller, error) {
	if c, ok := callerByCertificate(ctx, m.cfg.TrustDomain); ok {
		return c, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if id := first(md, "clusterid"); id != "" && id != m.cfg.ClusterID {
		return caller{}, status.Errorf(codes.Unauthenticated,
			"client claims to be in cluster %q, but we only know about local cluster %q", id, m.cfg.ClusterID)
	}
	token, ok := strings.CutPrefix(first(md, "authorization"), "Bearer ")
	if !ok {
		return caller{}, status.Error(codes.Unauthenticated, "authentication failure: no credentials")
	}
	if m.refuseTokens.Load() {
		return caller{}, status.Error(codes.Unauthenticated, "authentication failure: token refused")
	}
	account, namespace, err := m.mint.verify(token, AudienceCA)
	if err != nil {
		return caller{}, status.Errorf(codes.Unauthenticated, "authentication failure: %v", err)
	}
	return caller{namespace: namespace, account: account}, nil
}

func callerByCertificate(ctx context.Context, trustDomain string) (caller, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return caller{}, false
	}
	id, err := leafID(info.State.PeerCertificates[0], trustDomain)
	if err != nil {
		return caller{}, false
	}
	parts := strings.Split(id, "/") // spiffe: "" td ns NS sa SA
	if len(parts) != 7 || parts[3] != "ns" || parts[5] != "sa" {
		return caller{}, false
	}
	return caller{namespace: parts[4], account: parts[6]}, true
}

func first(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

var errNoIdentity = errors.New("certificate without an identity of the mesh")

// leafID returns the SPIFFE ID of a certificate of this mesh.
func leafID(c *x509.Certificate, trustDomain string) (string, error) {
	for _, u := range c.URIs {
		if u.Scheme == "spiffe" && u.Host == trustDomain {
			return u.String(), nil
		}
	}
	return "", errNoIdentity
}

// caServer is istio.v1.auth.IstioCertificateService.
type caServer struct {
	securitypb.UnimplementedIstioCertificateServiceServer
	mesh *Mesh
}

// CreateCertificate signs for the caller. What the request asks to be called
// is ignored: the name is the caller's.
func (s *caServer) CreateCertificate(ctx context.Context, req *securitypb.IstioCertificateRequest) (*securitypb.IstioCertificateResponse, error) {
	m := s.mesh
	c, err := m.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "CSR is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "parse CSR: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "CSR signature: %v", err)
	}
	a := m.authority
	leaf, err := a.sign(csr.PublicKey, names{uris: []string{a.spiffe(c.namespace, c.account)}}, m.ttl(req.GetValidityDuration()))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	m.signed.Add(1)
	return &securitypb.IstioCertificateResponse{CertChain: []string{
		string(certPEM(leaf.Raw)),
		string(certPEM(a.intermediate.Raw)),
		string(certPEM(a.root.Raw)),
	}}, nil
}

// ttl is what a client gets of the life that it asks for.
func (m *Mesh) ttl(seconds int64) time.Duration {
	limit := time.Duration(m.certTTL.Load())
	if seconds <= 0 || seconds > int64(limit/time.Second) {
		return limit
	}
	return time.Duration(seconds) * time.Second
}
