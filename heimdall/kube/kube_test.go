// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"k8s.io/client-go/rest"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
	"github.com/nasp-tun/nasp-tun/heimdall/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	services = "/api/v1/namespaces/istio-system/services/"
	configs  = "/api/v1/namespaces/istio-system/configmaps/"
)

func client(t *testing.T, f *kubetest.Fake, change func(*kube.Config)) *kube.Client {
	t.Helper()
	cfg := kube.Config{REST: f.REST()}
	if change != nil {
		change(&cfg)
	}
	c, err := kube.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The enrolment of a group has everything, and nothing that is not the
// cluster's.
func TestEnroll(t *testing.T) {
	f := kubetest.NewFake(t, kubetest.Mesh)
	c := client(t, f, nil)
	g, err := c.Group(t.Context(), "external", "test-http")
	if err != nil {
		t.Fatal(err)
	}
	if !g.Monitored || g.Life != kube.DefaultTokenLife {
		t.Errorf("group %+v", g)
	}
	before := time.Now()
	e, err := c.Enroll(t.Context(), g.Workload())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	if life := e.TokenExpiry.Sub(before); life < kube.IstioTokenLife-2*time.Second || life > kube.IstioTokenLife+time.Minute {
		t.Errorf("token lives for %s", life)
	}
	if got, err := c.Review(t.Context(), e.Token, kube.IstioAudience); err != nil || got != (kube.Account{Namespace: "external", Name: "test-http"}) {
		t.Errorf("token is one of %v, %v", got, err)
	}
	e.Token, e.TokenExpiry = heimdall.Secret{}, time.Time{}
	want := heimdall.Enrollment{
		IstiodAddress: "172.30.0.10:15012", OtherAddresses: []string{"gateway.example:15012"},
		IstiodServerName: "istiod.istio-system.svc", Roots: []byte(kubetest.RootPEM),
		ClusterID: "c1", MeshID: "mesh1", TrustDomain: "td1", Revision: "default", IstioVersion: "1.31.0",
		Namespace: "external", ServiceAccount: "test-http", WorkloadName: "test-http",
		Owner: "kubernetes://apis/v1/namespaces/external/workloadgroups/test-http",
		Labels: map[string]string{
			"app": "test-http", "version": "v2", "tier": "edge",
			"security.istio.io/tlsMode": "istio", "istio.io/rev": "default", "topology.istio.io/network": "network2",
			"service.istio.io/canonical-name": "test-http", "service.istio.io/canonical-revision": "v2",
		},
		Network: "network2", AutoRegisterGroup: "test-http",
		DNSDomain: "k8s.local", SearchDomains: []string{"svc.k8s.local", "k8s.local"},
	}
	if d := cmp.Diff(want, e, cmp.AllowUnexported(heimdall.Secret{})); d != "" {
		t.Errorf("enrolment (-want +got):\n%s", d)
	}
}

// Without a group the workload is its account, on the cluster's network.
func TestEnrollWithoutGroup(t *testing.T) {
	c := client(t, kubetest.NewFake(t, kubetest.Mesh), nil)
	e, err := c.Enroll(t.Context(), kube.Workload{Namespace: "external", ServiceAccount: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if e.WorkloadName != "other" || e.AutoRegisterGroup != "" || e.Network != "network1" || e.Labels["app"] != "other" {
		t.Errorf("enrolment %+v", e)
	}
}

func TestMesh(t *testing.T) {
	gateway := func(metadata, spec, status map[string]any) map[string]any {
		return map[string]any{"metadata": metadata, "spec": spec, "status": status}
	}
	labels := map[string]any{"labels": map[string]any{"istio": "eastwestgateway", "topology.istio.io/network": "network1"}}
	foreign := map[string]any{"labels": map[string]any{"istio": "eastwestgateway", "topology.istio.io/network": "network9"}}
	ports := func(n ...int) []any {
		var all []any
		for _, p := range n {
			all = append(all, map[string]any{"port": p})
		}
		return all
	}
	address := func(ip string) map[string]any {
		return map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": ip}}}}
	}
	const gw = services + "istio-eastwestgateway"
	tests := []struct {
		name   string
		objs   map[string]map[string]any
		change func(*kube.Config)
		check  func(kube.Mesh) bool
		err    error
		text   string
	}{
		{
			name: "revision",
			objs: map[string]map[string]any{
				configs + "istio-canary":                  {"data": map[string]any{"mesh": "trustDomain: td2"}},
				configs + "istio-sidecar-injector-canary": {"data": map[string]any{"values": `{"global":{"tag":1.30}}`}},
			},
			change: func(c *kube.Config) { c.Revision = "canary" },
			check: func(m kube.Mesh) bool {
				return m.ServerName == "istiod-canary.istio-system.svc" && m.TrustDomain == "td2" && m.MeshID == "td2" &&
					m.ClusterID == "Kubernetes" && m.DNSDomain == "cluster.local" && m.IstioVersion == ""
			},
		},
		{
			name: "istiod's defaults", objs: map[string]map[string]any{configs + "istio": nil, configs + "istio-sidecar-injector": nil},
			check: func(m kube.Mesh) bool {
				return m.TrustDomain == "cluster.local" && m.MeshID == "cluster.local" && m.ClusterID == "Kubernetes"
			},
		},
		{
			name:   "cluster named by hand",
			change: func(c *kube.Config) { c.ClusterID = "mine" },
			check:  func(m kube.Mesh) bool { return m.ClusterID == "mine" },
		},
		{
			name: "external address and IPv6 first of own network",
			objs: map[string]map[string]any{
				gw:                  gateway(labels, map[string]any{"ports": ports(15012), "externalIPs": []any{"2001:db8::1"}}, address("192.0.2.1")),
				services + "a-gate": gateway(foreign, map[string]any{"ports": ports(15012)}, address("192.0.2.9")),
			},
			check: func(m kube.Mesh) bool {
				return slices.Equal(m.Addresses, []string{"[2001:db8::1]:15012", "192.0.2.1:15012", "192.0.2.9:15012"})
			},
		},
		{
			name: "address by hand needs no gateway", objs: map[string]map[string]any{gw: nil},
			change: func(c *kube.Config) { c.Address = "istiod.example:443" },
			check:  func(m kube.Mesh) bool { return slices.Equal(m.Addresses, []string{"istiod.example:443"}) },
		},
		{name: "no gateway", objs: map[string]map[string]any{gw: nil}, err: kube.ErrNoGateway, text: "istio=eastwestgateway"},
		{
			name: "gateway without istiod", objs: map[string]map[string]any{gw: gateway(labels, map[string]any{"ports": ports(15443)}, address("192.0.2.1"))},
			err: kube.ErrNoGateway,
		},
		{
			name: "load balancer pending", objs: map[string]map[string]any{gw: gateway(labels, map[string]any{"ports": ports(15012)}, nil)},
			err: kube.ErrNoGateway,
		},
		{name: "no such revision", change: func(c *kube.Config) { c.Revision = "gone" }, err: kube.ErrNoIstiod, text: "istio.io/rev=gone"},
		{name: "no roots", objs: map[string]map[string]any{configs + "istio-ca-root-cert": nil}, err: kube.ErrNotFound, text: "roots"},
		{name: "no namespace", change: func(c *kube.Config) { c.IstioNamespace = "mesh" }, err: kube.ErrNotFound},
		{name: "broken mesh", objs: map[string]map[string]any{configs + "istio": {"data": map[string]any{"mesh": "a: [b"}}}, text: "ConfigMap istio"},
		{name: "broken values", objs: map[string]map[string]any{configs + "istio-sidecar-injector": {"data": map[string]any{"values": "{"}}}, text: "ConfigMap istio-sidecar-injector"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := kubetest.NewFake(t, kubetest.Mesh)
			for path, o := range tt.objs {
				f.Put(path, o)
			}
			m, err := client(t, f, tt.change).Mesh(t.Context())
			switch {
			case tt.check != nil && (err != nil || !tt.check(m)):
				t.Errorf("mesh %+v, %v", m, err)
			case tt.check == nil && (err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.text)):
				t.Errorf("error %v, want %v with %q", err, tt.err, tt.text)
			}
		})
	}
}

// The mesh is read once in a while, not once a client; a changed address of
// the gateway is seen then.
func TestMeshIsReadAgain(t *testing.T) {
	f := kubetest.NewFake(t, kubetest.Mesh)
	now := time.Now()
	c := client(t, f, func(c *kube.Config) { c.Now = func() time.Time { return now } })
	read := func() string {
		t.Helper()
		m, err := c.Mesh(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return m.Addresses[0]
	}
	if got := read(); got != "172.30.0.10:15012" {
		t.Fatalf("gateway at %s", got)
	}
	f.Calls()
	f.Put(services+"istio-eastwestgateway", map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"istio": "eastwestgateway"}},
		"spec":     map[string]any{"ports": []any{map[string]any{"port": 15012}}, "externalIPs": []any{"192.0.2.7"}},
	})
	if got := read(); got != "172.30.0.10:15012" || len(f.Calls()) != 0 {
		t.Errorf("read again at once: %s", got)
	}
	now = now.Add(11 * time.Second)
	if got := read(); got != "192.0.2.7:15012" {
		t.Errorf("gateway at %s", got)
	}
	// An API server that is away is told, not what was true before.
	now = now.Add(11 * time.Second)
	f.Fault(func(*http.Request) int { return http.StatusServiceUnavailable })
	if _, err := c.Mesh(t.Context()); !errors.Is(err, kube.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

func TestReview(t *testing.T) {
	f := kubetest.NewFake(t, kubetest.Mesh)
	c := client(t, f, nil)
	now := time.Now()
	const aud = "nasp-heimdall:workloadgroup:external:test-http"
	if kube.Audience("external", "test-http") != aud {
		t.Error(kube.Audience("external", "test-http"))
	}
	for name, token := range map[string]string{
		"expired": f.Issue("external", "test-http", aud, now.Add(-time.Hour), now.Add(-time.Minute)),
		"foreign": f.Issue("external", "test-http", "istio-ca", now, now.Add(time.Hour)),
		"forged":  "e30.e30.AAAA",
	} {
		if _, err := c.Review(t.Context(), heimdall.NewSecret(token), aud); !errors.Is(err, kube.ErrNotAuthentic) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.Fault(func(*http.Request) int { return http.StatusInternalServerError })
	if _, err := c.Review(t.Context(), heimdall.NewSecret("x"), aud); !errors.Is(err, kube.ErrUnavailable) || errors.Is(err, kube.ErrNotAuthentic) {
		t.Errorf("API away: %v", err)
	}
	gone, err := kube.New(kube.Config{REST: &rest.Config{Host: "http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Review(t.Context(), heimdall.NewSecret("hunter2"), aud); !errors.Is(err, kube.ErrUnavailable) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestMintRefused(t *testing.T) {
	f := kubetest.NewFake(t, kubetest.Mesh)
	c := client(t, f, nil)
	if _, _, err := c.Mint(t.Context(), "external", "gone", kube.IstioAudience, time.Hour); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("no account: %v", err)
	}
	f.Fault(func(*http.Request) int { return http.StatusForbidden })
	_, _, err := c.Mint(t.Context(), "external", "test-http", kube.IstioAudience, time.Hour)
	if !errors.Is(err, kube.ErrForbidden) || !strings.Contains(err.Error(), "a fault of the test") {
		t.Errorf("forbidden: %v", err)
	}
}

func TestTokenLife(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want time.Duration
		err  string
	}{
		{"", kube.DefaultTokenLife, ""},
		{"1h30m", 90 * time.Minute, ""},
		{"1m", kube.MinTokenLife, "below"},
		{"-1h", kube.MinTokenLife, "below"},
		{"100000h", kube.MaxTokenLife, "above"},
		{"a day", kube.DefaultTokenLife, "24h0m0s is used"},
	} {
		got, err := kube.TokenLife(tt.in)
		if got != tt.want || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %s, %v", tt.in, got, err)
		}
	}
}

// A Source over the cluster itself needs no access token.
func TestSourceOverKubeconfig(t *testing.T) {
	f := kubetest.NewFake(t, kubetest.Mesh)
	path := filepath.Join(t.TempDir(), "config")
	text := `{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: c, cluster: {server: "` + f.REST().Host + `"}}],
contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c, namespace: external}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, namespace, err := kube.Kubeconfig(path, "b")
	if err != nil || namespace != "external" {
		t.Fatalf("namespace %q, %v", namespace, err)
	}
	c, err := kube.New(kube.Config{REST: cfg})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := heimdall.NewSource(heimdall.SourceConfig{NoAccessToken: true, Fetch: func(ctx context.Context, _ heimdall.Secret) (heimdall.Enrollment, error) {
		return c.Enroll(ctx, kube.Workload{Namespace: namespace, ServiceAccount: "test-http"})
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if token, err := s.Token(t.Context()); err != nil || token == "" {
		t.Errorf("token: %v", err)
	}
	if _, _, err := kube.Kubeconfig(path, "gone"); err == nil {
		t.Error("a context that does not exist was taken")
	}
}
