// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// findEnvoy returns the path of a real Envoy. Where ENVOY_BIN names one,
// as in CI, it must be there.
func findEnvoy(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("ENVOY_BIN"); path != "" {
		if _, err := exec.LookPath(path); err != nil {
			t.Fatalf("ENVOY_BIN: %v", err)
		}
		return path
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		if os.Getenv("NASP_TUN_NETNS") == "require" {
			t.Fatal("ENVOY_BIN names no Envoy, and none is in the path")
		}
		t.Skip("no envoy in the path, and ENVOY_BIN names none")
	}
	return path
}

// sidecar is an Envoy set up as a workload's inbound side: the chain is chosen
// by the ALPN that the client offers.
const sidecar = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: inbound
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    listener_filters:
    - name: tls_inspector
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
    filter_chains:
    - filter_chain_match: {transport_protocol: tls, application_protocols: [istio-http/1.1, istio-h2]}
      transport_socket: &tls
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates: [{certificate_chain: {filename: "%[1]s/cert.pem"}, private_key: {filename: "%[1]s/key.pem"}}]
            validation_context: {trusted_ca: {filename: "%[1]s/root.pem"}}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          common_http_protocol_options: {max_requests_per_connection: 7}
          forward_client_cert_details: APPEND_FORWARD
          set_current_client_cert_details: {uri: true}
          route_config: {virtual_hosts: [{name: a, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
    - filter_chain_match: {transport_protocol: tls, application_protocols: [istio]}
      transport_socket: *tls
      filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: app}
  clusters:
  - name: app
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`

// startEnvoy runs an Envoy in front of app and returns where it listens.
func (e *env) startEnvoy(t *testing.T, path string, app netip.AddrPort) string {
	t.Helper()
	dir := t.TempDir()
	cert := e.ca.Server(echoID).Certificates[0]
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	_, roots, err := e.ca.Sign(t.Context(), e.ca.Request(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"cert.pem":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		"key.pem":    pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
		"root.pem":   roots[0],
		"envoy.yaml": fmt.Appendf(nil, sidecar, dir, app.Port()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, path, "-c", filepath.Join(dir, "envoy.yaml"), "--use-dynamic-base-id",
		"--concurrency", "1", "--admin-address-path", filepath.Join(dir, "admin"), "--log-level", "info")
	logs := &watch{want: "starting main dispatch loop", seen: make(chan struct{})}
	cmd.Stderr, cmd.Stdout = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = cmd.Wait(); close(ended) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-logs.seen:
	case <-ended:
		t.Fatalf("envoy ended:\n%s", logs.text())
	}
	admin, err := os.ReadFile(filepath.Join(dir, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	tr := new(http.Transport)
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+strings.TrimSpace(string(admin))+"/listeners", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	_, addr, found := strings.Cut(strings.TrimSpace(string(b)), "inbound::")
	if err != nil || !found {
		t.Fatalf("listeners: %q, %v", b, err)
	}
	return addr
}

// A watch keeps a program's output and tells when a line of it was there.
type watch struct {
	mu   sync.Mutex
	b    bytes.Buffer
	want string
	once sync.Once
	seen chan struct{}
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	if strings.Contains(w.b.String(), w.want) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

func (w *watch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// A real sidecar takes our HTTP/1, our HTTP/2 and our raw TCP for what they
// are, and when it ends a connection after some requests no request is lost.
func TestRealSidecar(t *testing.T) {
	path := findEnvoy(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d", r.URL.Path, r.Header.Get("X-Forwarded-Client-Cert"), len(b))
	}))
	defer app.Close()
	var d net.Dialer
	for _, v := range []resource.HTTPVersion{resource.HTTP1, resource.HTTP2, resource.AutoHTTP} {
		e := newEnv(t)
		e.cluster.HTTP = v
		e.dial = d.DialContext
		addr := e.startEnvoy(t, path, app.Listener.Addr().(*net.TCPAddr).AddrPort())
		e.endpoints(addr)
		e.start()
		c := e.client()
		for i := range 30 {
			body := strings.Repeat("x", i*1000)
			c.send(fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body))
			r, got := c.response("POST")
			if r.StatusCode != 200 || !strings.HasPrefix(got, fmt.Sprintf("/%d ", i)) || !strings.HasSuffix(got, fmt.Sprintf(" %d", len(body))) ||
				!strings.Contains(got, "URI=spiffe://cluster.local/ns/external/sa/laptop") {
				t.Fatalf("version %v, request %d: %d %q", v, i, r.StatusCode, got)
			}
		}
		if s := e.cfg.Upstream.Status(); s.Dials < 4 || s.Dials > 10 {
			t.Errorf("version %v: %d connections for 30 requests of 7 each: %+v", v, s.Dials, s)
		}
		target, err := e.cfg.Upstream.Pick(t.Context(), e.cluster, balance.New(e.cluster), netip.AddrPort{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		rawTCP(t, e.cfg.Upstream, target)
	}
}

func rawTCP(t *testing.T, m *upstream.Manager, target upstream.Target) {
	t.Helper()
	conn, err := m.Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /raw HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// The application itself answered, and the sidecar added nothing.
	if b, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(b), "\r\n\r\n/raw  0") || conn.PeerID() != echoID {
		t.Errorf("%q, %v", b, err)
	}
}
