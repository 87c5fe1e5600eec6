// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
	"github.com/nasp-tun/nasp-tun/heimdall/kube/kubetest"
	"github.com/nasp-tun/nasp-tun/heimdall/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	audience = "nasp-heimdall:workloadgroup:external:test-http"
	groups   = "/apis/networking.istio.io/v1beta1/namespaces/external/workloadgroups/"
	accounts = "/api/v1/namespaces/external/serviceaccounts/"
)

// A world is a server over a fake API, and what it wrote.
type world struct {
	api           *kubetest.Fake
	public, inner string // URLs
	roots         []byte
	logs          *safeBuffer
	stop          func() error
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// issue makes a certificate for loopback that is its own root.
func issue(t testing.TB, serial int64) (chain, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "heimdall"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func start(t *testing.T, change func(*server.Config)) *world {
	t.Helper()
	w := &world{api: kubetest.NewFake(t, kubetest.Mesh), logs: &safeBuffer{}}
	logger := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	k, err := kube.New(kube.Config{REST: w.api.REST(), FactsAge: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	chain, key := issue(t, 1)
	w.roots = chain
	cert := server.NewCertificate(func(context.Context) ([]byte, []byte, error) { return chain, key, nil }, logger)
	if err := cert.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	cfg := server.Config{
		Public: listen(t), Internal: listen(t), Certificate: cert, Kube: k, Namespaces: []string{"external"},
		DrainDelay: -1, Registerer: reg, Gatherer: reg, Logger: logger,
	}
	_, port, err := net.SplitHostPort(cfg.Public.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w.public, w.inner = "https://localhost:"+port, "http://"+cfg.Internal.Addr().String()
	if change != nil {
		change(&cfg)
	}
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) fetch(t *testing.T, token string) (heimdall.Enrollment, error) {
	t.Helper()
	c, err := heimdall.NewClient(heimdall.ClientConfig{URL: w.public, Roots: func() ([]byte, error) { return w.roots, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return c.Fetch(t.Context(), heimdall.NewSecret(token))
}

// get asks the inner port.
func (w *world) get(t *testing.T, path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.inner+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
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

// fresh is a token in the first part of its life, stale one in the second.
func (w *world) fresh() string {
	return w.api.Issue("external", "test-http", audience, time.Now(), time.Now().Add(24*time.Hour))
}

func (w *world) stale() string {
	return w.api.Issue("external", "test-http", audience, time.Now().Add(-13*time.Hour), time.Now().Add(11*time.Hour))
}

func TestEnroll(t *testing.T) {
	w := start(t, nil)
	e, err := w.fetch(t, w.fresh())
	if err != nil {
		t.Fatal(err)
	}
	if e.WorkloadName != "test-http" || e.IstiodAddress != "172.30.0.10:15012" || e.Network != "network2" || len(e.InstanceIPs) != 1 {
		t.Errorf("enrolment %+v", e)
	}
	if !e.AccessToken.IsZero() {
		t.Error("a young token was replaced")
	}
	// The renewed token is as good as the one from the Secret.
	if e, err = w.fetch(t, w.stale()); err != nil {
		t.Fatal(err)
	}
	if life := time.Until(e.AccessTokenExpiry); life < 23*time.Hour {
		t.Errorf("renewed token lives for %s", life)
	}
	if _, err := w.fetch(t, e.AccessToken.Reveal()); err != nil {
		t.Errorf("renewed token: %v", err)
	}
	for _, secret := range []string{e.AccessToken.Reveal(), e.Token.Reveal()} {
		if strings.Contains(w.logs.String(), secret) {
			t.Error("a token is in the log")
		}
	}
	for _, want := range []string{"status=200", "src=127.0.0.1", "group=test-http", "account=external/test-http"} {
		if !strings.Contains(w.logs.String(), want) {
			t.Errorf("audit has no %s:\n%s", want, w.logs)
		}
	}
	if _, text := w.get(t, "/metrics"); !strings.Contains(text, `nasp_heimdall_requests_total{code="200"} 3`) ||
		!strings.Contains(text, "nasp_heimdall_certificate_expiry_timestamp_seconds 1") {
		t.Errorf("metrics:\n%s", text)
	}
}

func TestRefusals(t *testing.T) {
	now := time.Now()
	account := func(annotations map[string]any) map[string]any {
		return map[string]any{"metadata": map[string]any{"annotations": annotations}}
	}
	group := func(labels map[string]any, account string) map[string]any {
		return map[string]any{
			"metadata": map[string]any{"labels": labels}, "spec": map[string]any{"template": map[string]any{"serviceAccount": account}},
		}
	}
	monitored := map[string]any{"nasp.k8s.cisco.com/monitoring": "true"}
	tests := []struct {
		name  string
		token func(*world) string
		set   func(*world)
		kind  error
		text  string
	}{
		{name: "no JWT", token: func(*world) string { return "hunter2" }, kind: heimdall.ErrUnauthorized, text: "not one for Heimdall"},
		{name: "no audience", token: func(*world) string { return "e30.e30.AAAA" }, kind: heimdall.ErrUnauthorized, text: "not one for Heimdall"},
		{
			name: "foreign audience", kind: heimdall.ErrUnauthorized, text: "its audience must be",
			token: func(w *world) string {
				return w.api.Issue("external", "test-http", "istio-ca", now, now.Add(time.Hour))
			},
		},
		{
			name: "a path for an audience", kind: heimdall.ErrUnauthorized, text: "its audience must be",
			token: func(w *world) string {
				return w.api.Issue("external", "test-http", "nasp-heimdall:workloadgroup:external:../x", now, now.Add(time.Hour))
			},
		},
		{
			name: "expired", kind: heimdall.ErrUnauthorized, text: "kubectl -n external get secret test-http-nasp-token",
			token: func(w *world) string {
				return w.api.Issue("external", "test-http", audience, now.Add(-2*time.Hour), now.Add(-time.Hour))
			},
		},
		{
			name: "forged", kind: heimdall.ErrUnauthorized, text: "is not accepted by the cluster",
			token: func(w *world) string { return w.fresh() + "x" },
		},
		{
			name: "another account", kind: heimdall.ErrForbidden, text: "account external/other",
			token: func(w *world) string { return w.api.Issue("external", "other", audience, now, now.Add(time.Hour)) },
		},
		{
			name: "the same name elsewhere", kind: heimdall.ErrForbidden, text: "account elsewhere/test-http",
			token: func(w *world) string { return w.api.Issue("elsewhere", "test-http", audience, now, now.Add(time.Hour)) },
		},
		{
			name: "namespace not served", kind: heimdall.ErrForbidden, text: "namespace elsewhere",
			token: func(w *world) string {
				return w.api.Issue("elsewhere", "a", "nasp-heimdall:workloadgroup:elsewhere:g", now, now.Add(time.Hour))
			},
		},
		{name: "group gone", set: func(w *world) { w.api.Put(groups+"test-http", nil) }, kind: heimdall.ErrNotFound, text: "external/test-http does not exist"},
		{name: "group without account", set: func(w *world) { w.api.Put(groups+"test-http", group(monitored, "")) }, kind: heimdall.ErrForbidden, text: "spec.template.serviceAccount"},
		{name: "label gone", set: func(w *world) { w.api.Put(groups+"test-http", group(nil, "test-http")) }, kind: heimdall.ErrForbidden, text: "nasp.k8s.cisco.com/monitoring=true"},
		{name: "not allowed", set: func(w *world) { w.api.Put(accounts+"test-http", account(nil)) }, kind: heimdall.ErrForbidden, text: "heimdall.nasp.k8s.cisco.com/allowed=true"},
		{
			name: "API away", kind: heimdall.ErrUnavailable, text: "Kubernetes API does not answer",
			set: func(w *world) { w.api.Fault(func(*http.Request) int { return http.StatusServiceUnavailable }) },
		},
		{
			name: "no gateway", kind: heimdall.ErrUnavailable, text: "east-west gateway",
			set: func(w *world) {
				w.api.Put("/api/v1/namespaces/istio-system/services/istio-eastwestgateway", nil)
			},
		},
		{
			name: "no right", kind: heimdall.ErrServer, text: "internal error",
			set: func(w *world) {
				w.api.Fault(func(r *http.Request) int {
					if strings.HasSuffix(r.URL.Path, "/serviceaccounts/test-http/token") {
						return http.StatusForbidden
					}
					return 0
				})
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t, nil)
			token := w.fresh()
			if tt.token != nil {
				token = tt.token(w)
			}
			if tt.set != nil {
				tt.set(w)
			}
			_, err := w.fetch(t, token)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.kind, tt.text)
			}
			if strings.Contains(w.logs.String(), token) {
				t.Error("the token is in the log")
			}
			// Nothing outlasts its cause.
			if tt.set != nil && tt.kind == heimdall.ErrUnavailable {
				w.api.Fault(nil)
				w.api.Put("/api/v1/namespaces/istio-system/services/istio-eastwestgateway", map[string]any{
					"metadata": map[string]any{"labels": map[string]any{"istio": "eastwestgateway"}},
					"spec":     map[string]any{"ports": []any{map[string]any{"port": 15012}}, "externalIPs": []any{"192.0.2.7"}},
				})
				if e, err := w.fetch(t, token); err != nil || e.IstiodAddress != "192.0.2.7:15012" {
					t.Errorf("after it: %s, %v", e.IstiodAddress, err)
				}
			}
		})
	}
}

// A chart value lets accounts be used that nobody annotated.
func TestAnyAccount(t *testing.T) {
	w := start(t, func(c *server.Config) { c.AnyAccount = true })
	w.api.Put(accounts+"test-http", map[string]any{"metadata": map[string]any{}})
	if _, err := w.fetch(t, w.fresh()); err != nil {
		t.Error(err)
	}
}

// The mesh's roots are read each time, so that a laptop gets those of now.
func TestRootsRotate(t *testing.T) {
	w := start(t, nil)
	next := "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"
	w.api.Put("/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert", map[string]any{"data": map[string]any{"root-cert.pem": next}})
	e, err := w.fetch(t, w.fresh())
	if err != nil || string(e.Roots) != next {
		t.Errorf("roots %s, %v", e.Roots, err)
	}
}

func TestFlood(t *testing.T) {
	w := start(t, func(c *server.Config) {
		c.Limits = server.Limits{TokenRate: 1e-9, TokenBurst: 2, SourceRate: 1e-9, SourceBurst: 5}
	})
	token := w.fresh()
	for range 2 {
		if _, err := w.fetch(t, token); err != nil {
			t.Fatal(err)
		}
	}
	w.api.Calls()
	var refused *heimdall.Error
	if _, err := w.fetch(t, token); !errors.Is(err, heimdall.ErrThrottled) || !errors.As(err, &refused) || refused.RetryAfter == 0 {
		t.Errorf("third with one token: %v", err)
	}
	if calls := w.api.Calls(); len(calls) != 0 {
		t.Errorf("a throttled client made calls: %v", calls)
	}
	// Other tokens are not concerned, until the address is.
	if _, err := w.fetch(t, w.fresh()); err != nil {
		t.Error(err)
	}
	for i := range 2 {
		_, err := w.fetch(t, w.fresh())
		if got := errors.Is(err, heimdall.ErrThrottled); got != (i == 1) {
			t.Errorf("request %d: %v", 5+i, err)
		}
	}
}

// A laptop that does not trust the certificate shows no token.
func TestUntrusted(t *testing.T) {
	w := start(t, nil)
	w.roots, _ = issue(t, 2)
	if _, err := w.fetch(t, w.fresh()); !errors.Is(err, heimdall.ErrUntrusted) {
		t.Errorf("error %v", err)
	}
	if len(w.api.Calls()) != 0 {
		t.Error("the token was shown")
	}
}
