// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	securitypb "istio.io/api/security/v1alpha1"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	clusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	nameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	addressType   = "type.googleapis.com/istio.workload.Address"

	// patience bounds a wait that only a failure lets run out.
	patience = 20 * time.Second

	echoHost    = "echo.testing.svc.cluster.local"
	echoCluster = "outbound|80||" + echoHost
	laptop      = "spiffe://cluster.local/ns/external/sa/test-http"
)

// start runs a mesh for the length of a test.
func start(t *testing.T, cfg minimesh.Config) *minimesh.Mesh {
	t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	m, err := minimesh.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func waitCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// roots is the mesh's trust bundle.
func roots(t *testing.T, m *minimesh.Mesh) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(m.RootPEM()) {
		t.Fatal("no root in the trust bundle")
	}
	return p
}

// dial opens a channel to istiod with a token, a certificate, or neither.
func dial(t *testing.T, m *minimesh.Mesh, token string, cert *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	cfg := &tls.Config{RootCAs: roots(t, m), ServerName: minimesh.ServerName}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	opts := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(cfg))}
	if token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer{token: token, cluster: m.ClusterID()}))
	}
	c, err := grpc.NewClient(m.IstiodAddr().String(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

type bearer struct{ token, cluster string }

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token, "clusterid": b.cluster}, nil
}
func (bearer) RequireTransportSecurity() bool { return true }

// enrol gets a certificate for the account of the token.
func enrol(t *testing.T, m *minimesh.Mesh, conn grpc.ClientConnInterface, ttl time.Duration) (*tls.Certificate, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	resp, err := securitypb.NewIstioCertificateServiceClient(conn).CreateCertificate(t.Context(),
		&securitypb.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(ttl / time.Second)})
	if err != nil {
		return nil, err
	}
	if len(resp.GetCertChain()) != 3 {
		t.Fatalf("chain of %d elements, want leaf, intermediate and root", len(resp.GetCertChain()))
	}
	if last := resp.GetCertChain()[2]; last != string(m.RootPEM()) {
		t.Error("the last element is not the root bundle")
	}
	c := &tls.Certificate{PrivateKey: key}
	for _, p := range resp.GetCertChain()[:2] {
		b, rest := pem.Decode([]byte(p))
		if b == nil || len(rest) > 0 {
			t.Fatalf("not one certificate: %q", p)
		}
		c.Certificate = append(c.Certificate, b.Bytes)
	}
	if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
		t.Fatal(err)
	}
	return c, nil
}

// laptopCert enrols as the laptop of the demo.
func laptopCert(t *testing.T, m *minimesh.Mesh) *tls.Certificate {
	t.Helper()
	c, err := enrol(t, m, dial(t, m, m.MintToken("test-http", "external"), nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func laptopNode() *corepb.Node {
	md, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": "external", "SERVICE_ACCOUNT": "test-http", "CLUSTER_ID": "Kubernetes", "INSTANCE_IPS": "192.0.2.2",
	})
	if err != nil {
		panic(err)
	}
	return &corepb.Node{Id: "sidecar~192.0.2.2~lap.external~external.svc.cluster.local", Metadata: md}
}

// ads is one delta stream, driven by hand.
type ads struct {
	t  *testing.T
	st discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func openADS(t *testing.T, conn grpc.ClientConnInterface) *ads {
	t.Helper()
	st, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(waitCtx(t))
	if err != nil {
		t.Fatal(err)
	}
	return &ads{t: t, st: st}
}

func laptopADS(t *testing.T, m *minimesh.Mesh) *ads {
	t.Helper()
	return openADS(t, dial(t, m, m.MintToken("test-http", "external"), nil))
}

func (a *ads) send(r *discoverypb.DeltaDiscoveryRequest) {
	a.t.Helper()
	r.Node = laptopNode()
	if err := a.st.Send(r); err != nil {
		a.t.Fatal(err)
	}
}

func (a *ads) subscribe(typ string, names ...string) {
	a.t.Helper()
	a.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: names})
}

// next receives one response and acknowledges it.
func (a *ads) next() *discoverypb.DeltaDiscoveryResponse {
	a.t.Helper()
	r := a.receive()
	a.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return r
}

func (a *ads) receive() *discoverypb.DeltaDiscoveryResponse {
	a.t.Helper()
	r, err := a.st.Recv()
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

func resourceNames(r *discoverypb.DeltaDiscoveryResponse) string {
	var out []string
	for _, x := range r.GetResources() {
		out = append(out, x.GetName())
	}
	return strings.Join(out, " ")
}

// unpack returns a resource of a response by name.
func unpack[M proto.Message](t *testing.T, r *discoverypb.DeltaDiscoveryResponse, name string) M {
	t.Helper()
	for _, x := range r.GetResources() {
		if x.GetName() == name {
			return unpackAny[M](t, x.GetResource())
		}
	}
	t.Fatalf("no %q in %q", name, resourceNames(r))
	panic("not reached")
}

func unpackAny[M proto.Message](t *testing.T, a *anypb.Any) M {
	t.Helper()
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	return m.(M)
}

func TestFirstSync(t *testing.T) {
	m := start(t, minimesh.Config{})
	a := laptopADS(t, m)

	a.subscribe(clusterType)
	r := a.next()
	if got, want := resourceNames(r), "BlackHoleCluster InboundPassthroughCluster PassthroughCluster "+
		"outbound|7070||"+echoHost+" outbound|80||"+echoHost+" outbound|9000||"+echoHost; got != want {
		t.Errorf("clusters %q, want %q", got, want)
	}
	c := unpack[*clusterpb.Cluster](t, r, echoCluster)
	if c.GetType() != clusterpb.Cluster_EDS || c.GetEdsClusterConfig().GetServiceName() != echoCluster {
		t.Errorf("cluster is %v of %q", c.GetType(), c.GetEdsClusterConfig().GetServiceName())
	}

	a.subscribe(endpointType, echoCluster, "outbound|7070||"+echoHost, "outbound|9000||"+echoHost, "outbound|1||gone.testing.svc.cluster.local")
	r = a.next()
	if got := fmt.Sprint(r.GetRemovedResources()); got != "[outbound|1||gone.testing.svc.cluster.local]" {
		t.Errorf("removed %s", got)
	}
	e := unpack[*endpointpb.ClusterLoadAssignment](t, r, echoCluster)
	if n := len(e.GetEndpoints()[0].GetLbEndpoints()); n != 2 {
		t.Errorf("%d endpoints, want 2", n)
	}

	a.subscribe(listenerType)
	r = a.next()
	if got, want := resourceNames(r), "0.0.0.0_7070 0.0.0.0_80 10.96.0.10_9000 virtualInbound virtualOutbound"; got != want {
		t.Errorf("listeners %q, want %q", got, want)
	}
	unpack[*listenerpb.Listener](t, r, "0.0.0.0_80")

	a.subscribe(routeType, "80", "7070")
	r = a.next()
	hosts := unpack[*routepb.RouteConfiguration](t, r, "80").GetVirtualHosts()
	if got, want := fmt.Sprint(hosts[0].GetDomains()), "["+echoHost+" "+echoHost+". echo.testing echo.testing.svc 10.96.0.10]"; got != want {
		t.Errorf("domains %s, want %s", got, want)
	}

	a.subscribe(nameTableType)
	if r = a.next(); len(r.GetResources()) != 1 || r.GetResources()[0].GetName() != "" {
		t.Errorf("name table: %v", r)
	}

	// What istiod has nothing to say about it says so.
	a.subscribe(addressType)
	if r = a.next(); len(r.GetResources()) != 0 {
		t.Errorf("addresses: %v", r)
	}
	if err := m.WaitSynced(waitCtx(t), 1); err != nil {
		t.Fatal(err)
	}
}

func TestIdentity(t *testing.T) {
	m := start(t, minimesh.Config{CertTTL: time.Hour})
	conn := dial(t, m, m.MintToken("test-http", "external"), nil)
	c, err := enrol(t, m, conn, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Leaf.URIs) != 1 || c.Leaf.URIs[0].String() != laptop || len(c.Leaf.DNSNames) != 0 {
		t.Errorf("certificate for %v %v, want only %s", c.Leaf.URIs, c.Leaf.DNSNames, laptop)
	}
	if d := time.Until(c.Leaf.NotAfter); d > time.Hour || d < 50*time.Minute {
		t.Errorf("certificate lives %v, want an hour", d)
	}
	// The certificate is enough for the next one, with tokens refused.
	m.RefuseTokens(true)
	if _, err := enrol(t, m, conn, 0); err == nil {
		t.Error("a refused token got a certificate")
	}
	if c, err = enrol(t, m, dial(t, m, "", c), 0); err != nil {
		t.Errorf("renewal with the certificate: %v", err)
	} else if c.Leaf.URIs[0].String() != laptop {
		t.Errorf("renewed as %v", c.Leaf.URIs)
	}
	if m.Signed() != 2 {
		t.Errorf("signed %d certificates, want 2", m.Signed())
	}
}

func TestRefusals(t *testing.T) {
	m := start(t, minimesh.Config{})
	other := start(t, minimesh.Config{})
	tests := []struct {
		name, token, want string
		md                []string
	}{
		{name: "nothing", want: "no credentials"},
		{name: "other mesh", token: other.MintToken("test-http", "external"), want: "signature does not match"},
		{name: "expired", token: m.Mint(minimesh.Claims{ServiceAccount: "test-http", Namespace: "external", TTL: -time.Minute}), want: "expired"},
		{name: "audience", token: m.Mint(minimesh.Claims{ServiceAccount: "test-http", Namespace: "external", Audience: "other"}), want: "wrong audience"},
		{name: "garbage", token: "a.b", want: "signature does not match"},
		{name: "cluster", token: m.MintToken("test-http", "external"), md: []string{"clusterid", "elsewhere"}, want: `in cluster "elsewhere"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := dial(t, m, "", nil)
			md := tt.md
			if tt.token != "" {
				md = append(md, "authorization", "Bearer "+tt.token)
			}
			ctx := metadata.AppendToOutgoingContext(waitCtx(t), md...)
			_, err := securitypb.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securitypb.IstioCertificateRequest{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("certificate: error %v, want %q", err, tt.want)
			}
			st, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			if err == nil {
				_, err = st.Recv()
			}
			if err == nil || err == io.EOF || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("stream: error %v, want %q", err, tt.want)
			}
		})
	}
}

// verifyOptions checks a peer's chain against the mesh's root.
func verifyOptions(t *testing.T, m *minimesh.Mesh, st tls.ConnectionState) x509.VerifyOptions {
	t.Helper()
	o := x509.VerifyOptions{Roots: roots(t, m), Intermediates: x509.NewCertPool()}
	for _, c := range st.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	return o
}
