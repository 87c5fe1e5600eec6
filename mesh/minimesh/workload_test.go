// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

var (
	alpnHTTP = []string{"istio-http/1.1", "istio", "http/1.1"}
	alpnH2   = []string{"istio-h2", "istio", "h2"}
	alpnTCP  = []string{"istio"}
)

const workloadID = "spiffe://cluster.local/ns/testing/sa/default"

// client is a TLS client of the mesh as a sidecar's is: the name is checked by
// SPIFFE ID, not by DNS, and a certificate is sent whatever the server's list
// of authorities says.
func client(t *testing.T, m *minimesh.Mesh, cert *tls.Certificate, alpn []string) *tls.Config {
	t.Helper()
	return &tls.Config{
		// The peer has no DNS name; VerifyConnection checks chain and name.
		InsecureSkipVerify: true,
		ServerName:         "outbound_.80_._." + echoHost,
		NextProtos:         alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return &tls.Certificate{}, nil
			}
			return cert, nil
		},
		VerifyConnection: func(st tls.ConnectionState) error {
			_, err := st.PeerCertificates[0].Verify(verifyOptions(t, m, st))
			return err
		},
	}
}

// connect opens mTLS to an endpoint of echo.testing.
func connect(t *testing.T, addr netip.AddrPort, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	return tc, nil
}

func mustConnect(t *testing.T, addr netip.AddrPort, cfg *tls.Config) *tls.Conn {
	t.Helper()
	c, err := connect(t, addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// httpClient talks HTTP/1.1 to one endpoint.
func httpClient(t *testing.T, addr netip.AddrPort, cfg *tls.Config) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return connect(t, addr, cfg)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, c *http.Client, url string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(waitCtx(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestHTTPEcho(t *testing.T) {
	m := start(t, minimesh.Config{})
	cert := laptopCert(t, m)
	c := httpClient(t, m.Endpoints("echo", "testing", 80)[0], client(t, m, cert, alpnHTTP))
	code, body := get(t, c, "http://echo.testing/a?b=c", "X-Forwarded-Client-Cert", "By=spiffe://evil")
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	for _, want := range []string{
		"Hostname: echo-1\n", "\tmethod=GET\n", "\trequest_uri=http://echo.testing:8080/a?b=c\n", "\thost=echo.testing\n",
		fmt.Sprintf("\tx-forwarded-client-cert=By=%s;Hash=%x;Subject=\"\";URI=%s\n", workloadID, sha256.Sum256(cert.Leaf.Raw), laptop),
		"\tx-forwarded-proto=https\n", "\tx-request-id=",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	a := m.Accepts()
	if len(a) != 1 || a[0].Peer != laptop || a[0].SNI != "outbound_.80_._."+echoHost || a[0].Version != tls.VersionTLS13 {
		t.Errorf("accepted %+v", a)
	}
}

func TestTCPEchoHalfClose(t *testing.T) {
	m := start(t, minimesh.Config{})
	c := mustConnect(t, m.Endpoints("echo", "testing", 9000)[1], client(t, m, laptopCert(t, m), alpnTCP))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != "" {
		t.Errorf("negotiated %q, want nothing", p)
	}
}

func TestGRPC(t *testing.T) {
	m := start(t, minimesh.Config{})
	addr, cfg := m.Endpoints("echo", "testing", 7070)[0], client(t, m, laptopCert(t, m), alpnH2)
	conn, err := grpc.NewClient("passthrough:///echo.testing:7070",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return connect(t, addr, cfg) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	out, err := minimesh.Say(waitCtx(t), conn, "hello")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "message=hello\n") || !strings.Contains(out, "URI="+laptop) {
		t.Errorf("answer %q", out)
	}
	chat, err := minimesh.Chat(waitCtx(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		if out, err := chat.Say(word); err != nil || !strings.Contains(out, "message="+word+"\n") {
			t.Errorf("answer %q, %v", out, err)
		}
	}
	if err := chat.End(); err != nil {
		t.Error(err)
	}
	h, err := healthpb.NewHealthClient(conn).Check(waitCtx(t), &healthpb.HealthCheckRequest{})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", h, err)
	}
}
