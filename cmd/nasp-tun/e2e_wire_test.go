// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// serverHello13 is what selects TLS 1.3 in a ServerHello: the extension
// supported_versions, two bytes long, with 0x0304 (RFC 8446, 4.2.1).
var serverHello13 = []byte{0x00, 0x2b, 0x00, 0x02, 0x03, 0x04}

// needProgram fails in CI, and skips elsewhere, without a program.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv(testVariable) == "require" {
		t.Fatalf("%s is needed", name)
	}
	t.Skipf("%s is needed", name)
}

// capture records what passes on the loopback device to and from some ports.
type capture struct {
	cmd  *exec.Cmd
	file string
}

func startCapture(t *testing.T, ports []netip.AddrPort) *capture {
	t.Helper()
	needProgram(t, "tcpdump")
	filter := make([]string, len(ports))
	for i, p := range ports {
		filter[i] = fmt.Sprintf("tcp port %d", p.Port())
	}
	c := &capture{file: filepath.Join(t.TempDir(), "wire.pcap")}
	c.cmd = exec.CommandContext(t.Context(), "tcpdump", "-i", "lo", "--immediate-mode", "-U", "-w", c.file, "-Z", "root", strings.Join(filter, " or "))
	errs, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readUntil(t, errs, "listening on")
	var drain sync.WaitGroup
	drain.Go(func() { _, _ = io.Copy(io.Discard, errs) })
	t.Cleanup(drain.Wait)
	return c
}

// stop ends the capture and returns the bytes that were seen.
func (c *capture) stop(t *testing.T) []byte {
	t.Helper()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait()
	wire, err := os.ReadFile(c.file)
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func TestWireShowsTLS13AndNoClearText(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	ports := append(l.mesh.Endpoints("echo", "testing", 80), l.mesh.Endpoints("echo", "testing", 9000)...)
	h := hold(t, l)
	c := startCapture(t, ports)
	const marker = "a-marker-that-must-not-be-seen"
	if out := h.do(t, "curl -sS http://echo.testing/"+marker); !strings.Contains(out, marker) {
		t.Fatalf("HTTP: %q", out)
	}
	h.do(t, "exec 3<>/dev/tcp/echo.testing/9000")
	if out := h.do(t, "echo "+marker+" >&3; read -r x <&3; echo $x"); !strings.Contains(out, marker) {
		t.Fatalf("TCP: %q", out)
	}
	wire := c.stop(t)
	if n := bytes.Count(wire, serverHello13); n < 2 {
		t.Errorf("%d TLS 1.3 handshakes on the wire, want one for HTTP and one for TCP (%d bytes captured)", n, len(wire))
	}
	if bytes.Contains(wire, []byte(marker)) {
		t.Error("the payload was seen in clear")
	}
}

// The failures of a destination, and what CMD sees of each.
func TestRefusedRatherThanSentInClear(t *testing.T) {
	ports := []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}, {Number: 9000, Protocol: minimesh.TCP}}
	service := func(name string, e ...minimesh.Endpoint) minimesh.Service {
		return minimesh.Service{Name: name, Namespace: "testing", Ports: ports, Endpoints: e}
	}
	hbone := service("hbone", minimesh.Endpoint{})
	hbone.TLS = minimesh.HBONE
	l := newLab(t, minimesh.Config{Services: []minimesh.Service{
		service("none", []minimesh.Endpoint{}...),
		service("ill", minimesh.Endpoint{Unhealthy: true}),
		service("impostor", minimesh.Endpoint{Identity: "spiffe://cluster.local/ns/testing/sa/impostor"}),
		service("closed", minimesh.Endpoint{Fault: minimesh.Refuse}),
		service("alert", minimesh.Endpoint{Fault: minimesh.Alert}),
		hbone,
	}})
	h := hold(t, l)
	const ask = `curl -s -o /dev/null -w '%%{http_code} %%header{x-nasp-tun-reason}' http://%s.testing/`
	for _, tt := range []struct{ name, http string }{
		{"none", "503 no_endpoint"},
		{"ill", "503 no_endpoint"},
		{"impostor", "503 tls_identity"},
		{"closed", "503 connect"},
		{"alert", "503 tls"},
		{"hbone", "503 transport_unsupported"},
	} {
		if out := h.do(t, fmt.Sprintf(ask, tt.name)); strings.TrimSpace(out) != tt.http {
			t.Errorf("%s: HTTP got %q, want %q", tt.name, out, tt.http)
		}
		// bash says why connect failed; a refusal is the whole answer.
		if out := h.do(t, "(exec 3<>/dev/tcp/"+tt.name+".testing/9000) 2>&1"); !strings.Contains(out, "Connection refused") {
			t.Errorf("%s: TCP got %q, want a refusal", tt.name, out)
		}
	}
}

// A protocol in which the server speaks first lives behind a port whose
// protocol istiod has to guess.
func TestServerSpeaksFirst(t *testing.T) {
	l := newLab(t, minimesh.Config{Services: []minimesh.Service{{
		Name: "mail", Namespace: "testing",
		Ports: []minimesh.Port{{Number: 2525, Protocol: minimesh.Auto, App: minimesh.Banner}},
	}}})
	h := hold(t, l)
	h.do(t, "exec 3<>/dev/tcp/mail.testing/2525")
	if out := h.do(t, "read -r x <&3; echo $x"); !strings.HasPrefix(out, "220 mail-") {
		t.Errorf("got %q, want a greeting", out)
	}
}

func TestOutboundPolicyIsTheMeshs(t *testing.T) {
	l := newLab(t, minimesh.Config{RegistryOnly: true})
	// The loopback of the host is not the mesh's to refuse, so an address of
	// the host's own device stands for the world outside.
	ask := fmt.Sprintf("(exec 3<>/dev/tcp/%s/%d; cat <&3) 2>&1", ownAddress(t), listenAndGreet(t))
	if out := hold(t, l, "--name", "obeys").do(t, ask); !strings.Contains(out, "refused") && !strings.Contains(out, "reset") {
		t.Errorf("REGISTRY_ONLY: got %q, want a refusal", out)
	}
	if out := hold(t, l, "--name", "passes", "--outside", "allow").do(t, ask); !strings.Contains(out, "hello from outside") {
		t.Errorf("--outside=allow: got %q", out)
	}
}

// ownAddress is an address of this host that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr().String()
		}
	}
	t.Fatal("no address but loopback")
	return ""
}

// listenAndGreet serves a greeting on all addresses of this host.
func listenAndGreet(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	var serve sync.WaitGroup
	serve.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello from outside\n")
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); serve.Wait() })
	return ln.Addr().(*net.TCPAddr).Port
}

// QUIC must not wait: the mesh has no UDP, and says so at once.
func TestUDPToTheMeshIsRefusedAtOnce(t *testing.T) {
	needProgram(t, "python3")
	l := newLab(t, minimesh.Config{})
	const program = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((socket.gethostbyname("echo.testing"), 443))
s.send(b"hello")
try:
    print("got", s.recv(100))
except ConnectionRefusedError:
    print("refused")
`
	finish(t, l.naspTun(t, append(l.enrolled(), "--", "python3", "-c", program)...)).want(t, 0, "refused\n")
}

// startEnvoy runs a real Envoy and waits until its listeners are open.
func startEnvoy(t *testing.T, config string) {
	t.Helper()
	path := os.Getenv("ENVOY_BIN")
	if path == "" {
		if os.Getenv(testVariable) == "require" {
			t.Fatal("ENVOY_BIN does not name an Envoy")
		}
		t.Skip("ENVOY_BIN does not name an Envoy")
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "info")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readUntil(t, errs, "starting main dispatch loop")
	var drain sync.WaitGroup
	drain.Go(func() { _, _ = io.Copy(io.Discard, bufio.NewReader(errs)) })
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		drain.Wait()
		_ = cmd.Wait()
	})
}

const envoyServer = `
static_resources:
  listeners:
  - name: http
    address: {socket_address: {address: 127.0.0.1, port_value: $HTTP}}
    listener_filters:
    - name: tls_inspector
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
    filter_chains:
    - transport_socket: &tls
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [istio-peer-exchange, h2, http/1.1]
            tls_certificates:
            - {certificate_chain: {filename: $DIR/server.pem}, private_key: {filename: $DIR/server.key}}
            validation_context: {trusted_ca: {filename: $DIR/roots.pem}}
      filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inbound
          forward_client_cert_details: SANITIZE_SET
          set_current_client_cert_details: {subject: true, uri: true}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                direct_response: {status: 200, body: {inline_string: "hello from Envoy\n"}}
                response_headers_to_add:
                - {header: {key: x-seen-certificate, value: "%REQ(x-forwarded-client-cert)%"}}
                - {header: {key: x-seen-sni, value: "%REQUESTED_SERVER_NAME%"}}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  - name: tcp
    address: {socket_address: {address: 127.0.0.1, port_value: $TCP}}
    filter_chains:
    - transport_socket: *tls
      filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: inbound
          cluster: app
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $APP}}}}]}]
`

// The embedded mesh is ours at both ends; Envoy is what workloads have.
func TestEnvoyIsTheServer(t *testing.T) {
	needRoot(t)
	http, tcp := freePort(t), freePort(t)
	l := newLab(t, minimesh.Config{Services: []minimesh.Service{{
		Name: "envoy", Namespace: "testing",
		Ports:     []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}, {Number: 9000, Protocol: minimesh.TCP}},
		Endpoints: []minimesh.Endpoint{{External: map[uint16]netip.AddrPort{80: http, 9000: tcp}}},
	}}})
	dir := t.TempDir()
	pair, err := l.mesh.IssueSPIFFE(l.mesh.SPIFFE("testing", "default"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"server.pem": pair.Chain, "server.key": pair.Key, "roots.pem": pair.Roots} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	startEnvoy(t, strings.NewReplacer("$DIR", dir, "$HTTP", fmt.Sprint(http.Port()), "$TCP", fmt.Sprint(tcp.Port()),
		"$APP", fmt.Sprint(listenAndGreet(t))).Replace(envoyServer))

	h := hold(t, l)
	out := h.do(t, "curl -sS -D- http://envoy.testing/")
	for _, want := range []string{"hello from Envoy", "URI=" + demoIdentity, "outbound_.80_._.envoy.testing.svc.cluster.local"} {
		if !strings.Contains(out, want) {
			t.Errorf("Envoy's answer lacks %q:\n%s", want, out)
		}
	}
	if out := h.do(t, "cat </dev/tcp/envoy.testing/9000"); !strings.Contains(out, "hello from outside") {
		t.Errorf("TCP through Envoy: %q", out)
	}
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(closedPort(t))
}
