// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// all is a service with a port of every protocol.
func all(name string, mode minimesh.TLSMode) minimesh.Service {
	return minimesh.Service{
		Name: name, Namespace: "testing", TLS: mode, Endpoints: []minimesh.Endpoint{{}},
		Ports: []minimesh.Port{
			{Number: 80, Protocol: minimesh.HTTP},
			{Number: 90, Protocol: minimesh.TCP},
			{Number: 91, Protocol: minimesh.Auto},
			{Number: 3306, Protocol: minimesh.Auto, App: minimesh.Banner},
		},
	}
}

// speaks finds out what is behind a connection: "http" or "tcp".
func speaks(t *testing.T, c net.Conn) string {
	t.Helper()
	const req = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(c, req); err != nil {
		return err.Error()
	}
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		if err := w.CloseWrite(); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(c)
	switch {
	case string(b) == req:
		return "tcp"
	case strings.HasPrefix(string(b), "HTTP/1.1 200"):
		return "http"
	}
	return fmt.Sprintf("%q %v", b, err)
}

// A sidecar chooses by what is offered; a port with a declared protocol has no
// choice.
func TestChainByALPN(t *testing.T) {
	m := start(t, minimesh.Config{Services: []minimesh.Service{all("strict", minimesh.Strict), all("permissive", minimesh.Permissive)}})
	cert := laptopCert(t, m)
	tests := []struct {
		service          string
		port             uint16
		offer            []string
		speaks, protocol string // "": the handshake fails
	}{
		{"strict", 80, alpnHTTP, "http", "http/1.1"},
		{"strict", 80, alpnTCP, "http", ""},
		{"strict", 80, nil, "http", ""},
		{"strict", 90, alpnTCP, "tcp", ""},
		{"strict", 90, alpnHTTP, "tcp", ""},
		{"strict", 90, []string{"istio-peer-exchange", "istio"}, "tcp", ""},
		{"strict", 91, alpnHTTP, "http", "http/1.1"},
		{"strict", 91, []string{"istio-http/1.1"}, "http", ""},
		{"strict", 91, alpnTCP, "tcp", ""},
		{"strict", 91, []string{"http/1.1"}, "tcp", ""},
		{"permissive", 91, alpnHTTP, "http", "http/1.1"},
		{"permissive", 91, alpnTCP, "tcp", ""},
		{"permissive", 91, []string{"http/1.1"}, "", ""},
		{"permissive", 80, nil, "", ""},
	}
	for _, tt := range tests {
		c, err := connect(t, m.Endpoints(tt.service, "testing", tt.port)[0], client(t, m, cert, tt.offer))
		if tt.speaks == "" {
			if err == nil {
				t.Errorf("%s:%d %q: taken", tt.service, tt.port, tt.offer)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s:%d %q: %v", tt.service, tt.port, tt.offer, err)
			continue
		}
		p := c.ConnectionState().NegotiatedProtocol
		if got := speaks(t, c); got != tt.speaks || p != tt.protocol {
			t.Errorf("%s:%d %q: %s with %q, want %s with %q", tt.service, tt.port, tt.offer, got, p, tt.speaks, tt.protocol)
		}
	}
}

func TestClearText(t *testing.T) {
	m := start(t, minimesh.Config{Services: []minimesh.Service{
		all("strict", minimesh.Strict), all("permissive", minimesh.Permissive), all("clear", minimesh.Disabled),
	}})
	for _, service := range []string{"permissive", "clear"} {
		for port, want := range map[uint16]string{80: "http", 90: "tcp", 91: "http"} {
			if got := speaks(t, plainConn(t, m.Endpoints(service, "testing", port)[0])); got != want {
				t.Errorf("%s:%d speaks %s, want %s", service, port, got, want)
			}
		}
		// What is no method is not HTTP.
		c := plainConn(t, m.Endpoints(service, "testing", 91)[0])
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("%s echoes %q, %v", service, b, err)
		}
	}
	// A server that speaks first does so where clear text is certain.
	if got := readLine(t, plainConn(t, m.Endpoints("clear", "testing", 3306)[0])); got != "220 clear-1 ready\r\n" {
		t.Errorf("banner %q", got)
	}
	for _, port := range []uint16{80, 90, 91} {
		c := plainConn(t, m.Endpoints("strict", "testing", port)[0])
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("strict:%d answers clear text with %q", port, b)
		}
	}
}

func plainConn(t *testing.T, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// Who does not prove an identity of this mesh gets nothing.
func TestClientIdentityIsDemanded(t *testing.T) {
	m, other := start(t, minimesh.Config{}), start(t, minimesh.Config{})
	foreign := start(t, minimesh.Config{TrustDomain: "other.example"})
	keyPair := func(m *minimesh.Mesh, id string, ttl time.Duration) *tls.Certificate {
		p, err := m.IssueSPIFFE(id, ttl)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.X509KeyPair(p.Chain, p.Key)
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	server, err := m.IssueServer("istiod.example", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		cert *tls.Certificate
		ok   bool
	}{
		{"right", keyPair(m, laptop, time.Hour), true},
		{"none", nil, false},
		{"expired", keyPair(m, laptop, -time.Second), false},
		{"root of another mesh", keyPair(other, laptop, time.Hour), false},
		{"other trust domain", keyPair(m, "spiffe://other.example/ns/external/sa/test-http", time.Hour), false},
		{"mesh of another domain", keyPair(foreign, "spiffe://other.example/ns/external/sa/test-http", time.Hour), false},
		{"no identity", &server, false},
	}
	for _, tt := range tests {
		c, err := connect(t, m.Endpoints("echo", "testing", 9000)[0], client(t, m, tt.cert, alpnTCP))
		if err == nil {
			// With TLS 1.3 a client hears of its refusal when it reads.
			if _, err = io.WriteString(c, "x"); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s: error %v", tt.name, err)
		}
	}
	if n := len(m.Accepts()); n != 1 {
		t.Errorf("%d connections taken, want 1", n)
	}
}

func TestFaults(t *testing.T) {
	m := start(t, minimesh.Config{})
	cfg := client(t, m, laptopCert(t, m), alpnTCP)
	at := m.Endpoints("echo", "testing", 9000)[0]
	set := func(f minimesh.Fault) {
		t.Helper()
		if err := m.SetFault("echo", "testing", "echo-1", f); err != nil {
			t.Fatal(err)
		}
	}
	live := mustConnect(t, at, cfg)
	set(minimesh.Refuse)
	if _, err := connect(t, at, cfg); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refuse: %v", err)
	}
	if _, err := io.WriteString(live, "still here"); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(live, make([]byte, 10)); err != nil {
		t.Errorf("a live connection ends with the socket: %v", err)
	}
	set(minimesh.Reset)
	if _, err := connect(t, at, cfg); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %v", err)
	}
	set(minimesh.Alert)
	var alert *net.OpError
	if _, err := connect(t, at, cfg); !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("alert: %v", err)
	}
	set(minimesh.Hangup)
	if _, err := mustConnect(t, at, cfg).Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("hangup: %v", err)
	}
	set(minimesh.Silent)
	c := plainConn(t, at)
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("silent: %v", err)
	}
	set(minimesh.Mute)
	mute := mustConnect(t, at, cfg)
	if err := mute.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := mute.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("mute: %v", err)
	}
	set(minimesh.NoFault)
	if got := speaks(t, mustConnect(t, at, cfg)); got != "tcp" {
		t.Errorf("healed, but speaks %s", got)
	}
}

func TestFaultsAreChecked(t *testing.T) {
	m := start(t, minimesh.Config{})
	if err := m.SetFault("echo", "testing", "echo-9", minimesh.Reset); err == nil {
		t.Error("an endpoint that is not there takes a fault")
	}
	if err := m.SetFault("echo", "testing", "echo-1", "x"); err == nil {
		t.Error("an unknown fault is taken")
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// One address, two services, two identities: who comes by the wrong name must
// not meet the other.
func TestGateway(t *testing.T) {
	services := minimesh.DefaultServices()
	services = append(services, minimesh.Service{
		Name: "other", Namespace: "testing", ServiceAccount: "other", Ports: []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}},
	})
	m := start(t, minimesh.Config{Gateway: true, Services: services})
	cert := laptopCert(t, m)
	for service, account := range map[string]string{"echo": "default", "other": "other"} {
		cfg := client(t, m, cert, alpnHTTP)
		cfg.ServerName = "outbound_.80_._." + service + ".testing.svc.cluster.local"
		c := mustConnect(t, m.GatewayAddr(), cfg)
		if got, want := c.ConnectionState().PeerCertificates[0].URIs[0].String(), m.SPIFFE("testing", account); got != want {
			t.Errorf("%s is %s, want %s", service, got, want)
		}
		seen := map[string]bool{}
		for range 2 {
			_, body := get(t, httpClient(t, m.GatewayAddr(), cfg), "http://"+service+".testing")
			name, _, _ := strings.Cut(body, "\n")
			seen[name] = true
		}
		if len(seen) != 2 || !seen["Hostname: "+service+"-1"] {
			t.Errorf("%s: reached %v, want both endpoints", service, seen)
		}
	}
	for _, name := range []string{"", "outbound_.81_._.echo.testing.svc.cluster.local", "echo.testing"} {
		cfg := client(t, m, cert, alpnHTTP)
		cfg.ServerName = name
		if _, err := connect(t, m.GatewayAddr(), cfg); err == nil {
			t.Errorf("the name %q leads somewhere", name)
		}
	}
	// What is not TLS has no name.
	c := plainConn(t, m.GatewayAddr())
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("the gateway answers clear text with %q", b)
	}
}

// An impostor has a certificate of the mesh, but of another workload.
func TestImpostor(t *testing.T) {
	s := minimesh.DefaultServices()[0]
	s.Endpoints = []minimesh.Endpoint{{Identity: "spiffe://cluster.local/ns/testing/sa/evil"}}
	m := start(t, minimesh.Config{Services: []minimesh.Service{s}})
	c := mustConnect(t, m.Endpoints("echo", "testing", 80)[0], client(t, m, laptopCert(t, m), alpnHTTP))
	if got := c.ConnectionState().PeerCertificates[0].URIs[0].String(); got != s.Endpoints[0].Identity {
		t.Errorf("the impostor is %s", got)
	}
}

func TestShortCertificates(t *testing.T) {
	m := start(t, minimesh.Config{})
	m.SetCertTTL(time.Minute)
	if c := laptopCert(t, m); time.Until(c.Leaf.NotAfter) > time.Minute {
		t.Errorf("certificate until %v", c.Leaf.NotAfter)
	}
}

// A workload on an address of its own listens on the ports that it believes in.
func TestOwnAddress(t *testing.T) {
	s := minimesh.DefaultServices()[0]
	s.Endpoints = []minimesh.Endpoint{{Address: netip.MustParseAddr("127.0.0.41")}}
	m := start(t, minimesh.Config{Services: []minimesh.Service{s}})
	if got, want := m.Endpoints("echo", "testing", 80)[0].String(), "127.0.0.41:8080"; got != want {
		t.Errorf("listens on %s, want %s", got, want)
	}
	cfg := client(t, m, laptopCert(t, m), alpnHTTP)
	code, _ := get(t, httpClient(t, m.Endpoints("echo", "testing", 80)[0], cfg), "http://echo.testing")
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	// It may change there.
	s.Endpoints = []minimesh.Endpoint{{Address: s.Endpoints[0].Address, Identity: "spiffe://cluster.local/ns/testing/sa/new"}}
	if err := m.SetService(s); err != nil {
		t.Fatal(err)
	}
	c := mustConnect(t, m.Endpoints("echo", "testing", 80)[0], cfg)
	if got := c.ConnectionState().PeerCertificates[0].URIs[0].String(); got != s.Endpoints[0].Identity {
		t.Errorf("is %s, want %s", got, s.Endpoints[0].Identity)
	}
}

// Close ends whatever is open, and what is closed stays so.
func TestClose(t *testing.T) {
	m := start(t, minimesh.Config{})
	cert := laptopCert(t, m)
	tcp := mustConnect(t, m.Endpoints("echo", "testing", 9000)[0], client(t, m, cert, alpnTCP))
	web := mustConnect(t, m.Endpoints("echo", "testing", 80)[0], client(t, m, cert, alpnHTTP))
	if _, err := io.WriteString(web, "GET /stream?n=0 HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := readLine(t, web); !strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Fatalf("answer %q", got)
	}
	m.Close()
	for _, c := range []net.Conn{tcp, web} {
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Errorf("a connection outlives the mesh: %v", err)
		}
	}
	if m.SetService(minimesh.DefaultServices()[0]) == nil || m.StartIstiod() == nil {
		t.Error("a closed mesh opens something")
	}
}

// A client that comes back may resume its session, and is known all the same.
func TestResumption(t *testing.T) {
	m := start(t, minimesh.Config{})
	cfg := client(t, m, laptopCert(t, m), alpnTCP)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 {
		// The ticket comes with the first bytes.
		if got := speaks(t, mustConnect(t, m.Endpoints("echo", "testing", 9000)[0], cfg)); got != "tcp" {
			t.Errorf("speaks %s", got)
		}
	}
	a := m.Accepts()
	if len(a) != 2 || a[0].Resumed || !a[1].Resumed || a[1].Peer != laptop {
		t.Errorf("accepted %+v", a)
	}
}
