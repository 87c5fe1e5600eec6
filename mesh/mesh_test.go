// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// joined is a node in a mesh of the test's own, ready.
func joined(t *testing.T, cfg minimesh.Config, change func(*Config)) (*Mesh, *minimesh.Mesh) {
	t.Helper()
	mini, err := minimesh.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := mini.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mini.Close)
	c := Config{
		Istiod: mini.IstiodAddr().String(), ServerName: "istiod.istio-system.svc",
		Roots: func() ([]byte, error) { return mini.RootPEM(), nil },
		Token: func(context.Context) (string, error) { return mini.MintToken("laptop", "external"), nil },
		Node:  xds.NodeConfig{Namespace: "external", ServiceAccount: "laptop", WorkloadName: "laptop", ClusterID: mini.ClusterID()},
		Dial:  (&net.Dialer{}).DialContext,
	}
	if change != nil {
		change(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); run.Wait() })
	select {
	case <-m.Ready():
	case <-t.Context().Done():
		t.Fatal("the node did not become ready")
	}
	return m, mini
}

func TestNewWantsWhatItCannotDoWithout(t *testing.T) {
	for _, c := range []Config{
		{},
		{Istiod: "istiod:15012"},
		{Istiod: "istiod:15012", Roots: func() ([]byte, error) { return nil, nil }},
	} {
		if m, err := New(c); err == nil {
			t.Errorf("New(%+v) = %v, want an error", c, m)
		}
	}
}

func TestStatusOfANodeThatJoined(t *testing.T) {
	m, mini := joined(t, minimesh.Config{}, nil)
	st := m.Status()
	if !st.Ready || !st.Istiod.Connected || st.Services != 1 || len(st.Warnings) != 0 {
		t.Errorf("status = %+v", st)
	}
	if want := mini.SPIFFE("external", "laptop"); st.Identity.ID != want {
		t.Errorf("identity = %q, want %q", st.Identity.ID, want)
	}
	if len(mini.NACKs()) != 0 {
		t.Errorf("the node refused what a real istiod would send too: %v", mini.NACKs())
	}
}

// Each destination is explained as the data path treats it, and the step that
// has nothing is the last one.
func TestExplain(t *testing.T) {
	http := []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}, {Number: 9000, Protocol: minimesh.TCP}}
	m, _ := joined(t, minimesh.Config{RegistryOnly: true, Services: []minimesh.Service{
		{Name: "echo", Namespace: "testing", Ports: http},
		{Name: "plain", Namespace: "testing", Ports: http, TLS: minimesh.Disabled},
		{Name: "none", Namespace: "testing", Ports: http, Endpoints: []minimesh.Endpoint{}},
		{Name: "tunnel", Namespace: "testing", Ports: http, TLS: minimesh.HBONE},
	}}, nil)
	const mtls = "as spiffe://cluster.local/ns/external/sa/laptop"
	for _, tt := range []struct {
		host    string
		port    uint16
		last    string // layer of the last step
		ok      bool
		verdict string
	}{
		{"echo.testing", 80, "transport", true, mtls},
		{"echo.testing.svc.cluster.local", 9000, "transport", true, mtls},
		{"plain.testing", 80, "transport", true, "in clear"},
		{"none.testing", 80, "endpoint", false, "no endpoint"},
		{"none.testing", 9000, "endpoint", false, "no endpoint"},
		{"tunnel.testing", 80, "transport", false, "never sent in clear"},
		{"nobody.testing", 80, "name", false, "does not know this name"},
		{"192.0.2.77", 5432, "cluster", false, "REGISTRY_ONLY"},
	} {
		e, err := m.Explain(tt.host, tt.port, "")
		if err != nil {
			t.Errorf("%s:%d: %v", tt.host, tt.port, err)
			continue
		}
		last := e.Steps[len(e.Steps)-1]
		if last.Layer != tt.last || last.OK != tt.ok || !strings.Contains(e.Verdict, tt.verdict) {
			t.Errorf("%s:%d: the last step is %+v, the verdict %q; want %s, %v, %q", tt.host, tt.port, last, e.Verdict, tt.last, tt.ok, tt.verdict)
		}
	}
}

// An HTTP request and a raw stream are told apart by what they offer in ALPN.
func TestExplainNamesTheALPNThatIsOffered(t *testing.T) {
	m, _ := joined(t, minimesh.Config{}, nil)
	for port, want := range map[uint16]string{
		80:   "ALPN istio-http/1.1,istio,http/1.1",
		9000: "ALPN istio",
	} {
		e, err := m.Explain("echo.testing", port, "")
		if err != nil {
			t.Fatal(err)
		}
		if last := e.Steps[len(e.Steps)-1]; !strings.HasSuffix(last.Detail, want) {
			t.Errorf("port %d: %q, want %q", port, last.Detail, want)
		}
	}
}

func TestServicesByPattern(t *testing.T) {
	port := []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}}
	m, _ := joined(t, minimesh.Config{Services: []minimesh.Service{
		{Name: "cart", Namespace: "shop", Ports: port}, {Name: "card", Namespace: "shop", Ports: port}, {Name: "cart", Namespace: "dev", Ports: port},
	}}, nil)
	for pattern, want := range map[string]int{"": 3, "cart": 2, "*.shop": 2, "cart.*": 2, "*shop*": 2, "car[t].shop": 1, "shop.svc": 2, "nobody": 0} {
		got, err := m.Services(pattern)
		if err != nil || len(got) != want {
			t.Errorf("Services(%q): %d, %v; want %d", pattern, len(got), err, want)
		}
	}
	if _, err := m.Services("["); err == nil {
		t.Error("a malformed pattern was taken")
	}
}

// A token that istiod refuses is the reason that an operator reads.
func TestRefusedTokenIsTheLastError(t *testing.T) {
	mini, err := minimesh.New(minimesh.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := mini.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mini.Close)
	m, err := New(Config{
		Istiod: mini.IstiodAddr().String(), ServerName: "istiod.istio-system.svc",
		Roots: func() ([]byte, error) { return mini.RootPEM(), nil },
		Token: func(context.Context) (string, error) { return "a.forged.token", nil },
		Node:  xds.NodeConfig{Namespace: "external", ServiceAccount: "laptop", ClusterID: mini.ClusterID()},
		Dial:  (&net.Dialer{}).DialContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for m.LastError() == nil {
		select {
		case <-m.Ready():
			t.Fatal("a forged token was taken")
		case <-t.Context().Done():
			t.Fatal("no error")
		case <-tick.C:
		}
	}
	if _, err := m.Services(""); !errors.Is(err, ErrNotReady) {
		t.Errorf("Services before the first Snapshot: %v", err)
	}
	if !strings.Contains(m.LastError().Error(), "token refused") {
		t.Errorf("last error = %v", m.LastError())
	}
}
