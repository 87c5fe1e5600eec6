// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
	"github.com/nasp-tun/nasp-tun/heimdall/kube/kubetest"
)

const (
	waitLimit = 90 * time.Second
	pollEvery = 200 * time.Millisecond
	tokens    = "/api/v1/namespaces/external/secrets/test-http-nasp-token"
	group     = "/apis/networking.istio.io/v1/namespaces/external/workloadgroups/test-http"
	account   = "/api/v1/namespaces/external/serviceaccounts/test-http"
	merge     = "application/merge-patch+json"
)

// A world is Heimdall as the chart installs it: the built program, with the
// chart's arguments and under the chart's account, at a real API server.
type world struct {
	*kubetest.Cluster
	t      *testing.T
	url    string
	inner  string
	roots  []byte
	logs   *lockedBuffer
	stop   func() error
	tokens []string // that were seen; none may be in the log
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func install(t *testing.T) *world {
	t.Helper()
	w := &world{Cluster: kubetest.Start(t), t: t, logs: &lockedBuffer{}}
	w.Apply(t, kubetest.Istio)
	text := render(t)
	w.Apply(t, text)
	all := objects(t, text)
	dir := t.TempDir()
	bin := filepath.Join(dir, "heimdall")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../../cmd/heimdall").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	secret := find(t, all, "Secret", "heimdall-tls")
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		b, err := base64.StdEncoding.DecodeString(secret.Data[name])
		if err != nil {
			t.Fatal(err)
		}
		w.write(filepath.Join(dir, name), b)
		if name == "ca.crt" {
			w.roots = b
		}
	}
	public, internal := freeAddress(t), freeAddress(t)
	_, port, err := net.SplitHostPort(public)
	if err != nil {
		t.Fatal(err)
	}
	w.url, w.inner = "https://localhost:"+port, "http://"+internal
	args := slices.Clone(find(t, all, "Deployment", "heimdall").Spec.Template.Spec.Containers[0].Args)
	for i, a := range args {
		a = strings.ReplaceAll(a, "--listen=:16443", "--listen="+public)
		a = strings.ReplaceAll(a, "--listen-internal=:8080", "--listen-internal="+internal)
		args[i] = strings.ReplaceAll(a, "/var/run/secrets/heimdall/", dir+"/")
	}
	cmd := exec.Command(bin, append(args, "--kubeconfig="+w.kubeconfig(dir), "--drain-delay=0")...)
	cmd.Stderr = w.logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.stop = sync.OnceValue(func() error {
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	})
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		for _, s := range w.tokens {
			if strings.Contains(w.logs.String(), s) {
				t.Error("a token is in the log")
			}
		}
		if t.Failed() {
			t.Logf("heimdall's log:\n%s", w.logs)
		}
	})
	return w
}

func (w *world) write(name string, b []byte) {
	w.t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// kubeconfig gives Heimdall what a pod of the chart's account has.
func (w *world) kubeconfig(dir string) string {
	w.t.Helper()
	var out struct{ Status struct{ Token string } }
	w.Do(w.t, http.MethodPost, "/api/v1/namespaces/heimdall/serviceaccounts/heimdall/token", "", map[string]any{"spec": map[string]any{}}, &out)
	c := w.As(out.Status.Token)
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": c.Host, "certificate-authority": c.CAFile}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": out.Status.Token}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c", "user": "u"}}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.tokens = append(w.tokens, out.Status.Token)
	name := filepath.Join(dir, "kubeconfig")
	w.write(name, b)
	return name
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually waits until a condition holds.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-limit.C:
			w.t.Fatalf("never happened: %s", what)
		case <-w.t.Context().Done():
			w.t.Fatal("the test ended")
		}
	}
}

// token is what the group's Secret holds; "": there is none.
func (w *world) token() string {
	k, err := kube.New(kube.Config{REST: w.REST()})
	if err != nil {
		w.t.Fatal(err)
	}
	defer k.Close()
	data, err := k.SecretData(w.t.Context(), "external", "test-http-nasp-token")
	if err != nil && !errors.Is(err, kube.ErrNotFound) {
		w.t.Fatal(err)
	}
	if s := string(data["token"]); s != "" && !slices.Contains(w.tokens, s) {
		w.tokens = append(w.tokens, s)
	}
	return string(data["token"])
}

func (w *world) issued() string {
	w.t.Helper()
	w.eventually("a token is issued", func() bool { return w.token() != "" })
	return w.token()
}

func (w *world) gone() {
	w.t.Helper()
	w.eventually("the Secret is removed", func() bool { return w.token() == "" })
}

func (w *world) enroll(token string) (heimdall.Enrollment, error) {
	c, err := heimdall.NewClient(heimdall.ClientConfig{URL: w.url, Roots: func() ([]byte, error) { return w.roots, nil }})
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Fetch(w.t.Context(), heimdall.NewSecret(token))
}

func (w *world) refused(token string, kind error, text string) {
	w.t.Helper()
	if _, err := w.enroll(token); !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		w.t.Errorf("got %v, want %v with %q", err, kind, text)
	}
}

// patch changes metadata of an object; nil removes.
func (w *world) patch(path, field, key string, value any) {
	w.t.Helper()
	w.Do(w.t, http.MethodPatch, path, merge, map[string]any{"metadata": map[string]any{field: map[string]any{key: value}}}, nil)
}

// events are the reasons of what was told of the group.
func (w *world) events() []string {
	w.t.Helper()
	var list struct{ Items []struct{ Reason string } }
	w.Do(w.t, http.MethodGet, "/apis/events.k8s.io/v1/namespaces/external/events", "", nil, &list)
	var all []string
	for _, e := range list.Items {
		all = append(all, e.Reason)
	}
	return all
}

func (w *world) wantEvent(reason string) {
	w.t.Helper()
	w.eventually("Event "+reason, func() bool { return slices.Contains(w.events(), reason) })
}

// The whole life of a group, with the chart's rights and no others.
func TestClusterGroup(t *testing.T) {
	w := install(t)
	w.eventually("heimdall is ready", func() bool { return w.status("/readyz") == http.StatusOK })
	token := w.issued()
	w.wantEvent("TokenIssued")
	var secret struct {
		Type     string
		Metadata struct {
			Labels          map[string]string
			OwnerReferences []struct{ Kind, Name string }
		}
	}
	w.Do(t, http.MethodGet, tokens, "", nil, &secret)
	if secret.Type != "nasp.k8s.cisco.com/access-token" || secret.Metadata.Labels["nasp.k8s.cisco.com/workloadgroup"] != "test-http" ||
		len(secret.Metadata.OwnerReferences) != 1 || secret.Metadata.OwnerReferences[0].Name != "test-http" {
		t.Errorf("Secret %+v", secret)
	}
	e, err := w.enroll(token)
	if err != nil {
		t.Fatal(err)
	}
	w.tokens = append(w.tokens, e.Token.Reveal())
	if e.IstiodAddress != "172.30.0.10:15012" || e.Namespace != "external" || e.ServiceAccount != "test-http" || e.AutoRegisterGroup != "test-http" {
		t.Errorf("enrolment %+v", e)
	}
	root, err := kube.New(kube.Config{REST: w.REST()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got, err := root.Review(t.Context(), e.Token, kube.IstioAudience); err != nil || got.Name != "test-http" {
		t.Errorf("the token for istiod is one of %v, %v", got, err)
	}
	// A token for istiod is none for Heimdall, nor is a forged one.
	w.refused(e.Token.Reveal(), heimdall.ErrUnauthorized, "its audience must be")
	w.refused(token[:len(token)-6]+"AAAAAA", heimdall.ErrUnauthorized, "not accepted by the cluster")

	// The life of tokens follows the annotation, clamped to what there is.
	w.patch(group, "annotations", kube.LifeAnnotation, "1m")
	w.wantEvent("TokenLifeAdjusted")
	w.eventually("a token of the least life", func() bool {
		issued, expiry := heimdall.NewSecret(w.token()).Life()
		return expiry.Sub(issued) == kube.MinTokenLife
	})

	// Consent is taken back and given again.
	token = w.token()
	w.patch(account, "annotations", kube.AllowedAnnotation, nil)
	w.gone()
	w.wantEvent("ServiceAccountNotAllowed")
	w.refused(token, heimdall.ErrForbidden, kube.AllowedAnnotation)
	w.patch(account, "annotations", kube.AllowedAnnotation, "true")
	token = w.issued()

	// So is the label.
	w.patch(group, "labels", kube.MonitoringLabel, nil)
	w.gone()
	w.refused(token, heimdall.ErrForbidden, kube.MonitoringLabel)
	w.patch(group, "labels", kube.MonitoringLabel, "true")
	token = w.issued()

	// The Secret goes with its group; no garbage collector runs here.
	w.Do(t, http.MethodDelete, group, "", nil, nil)
	w.gone()
	w.refused(token, heimdall.ErrNotFound, "external/test-http does not exist")

	// RBAC does not let it mint tokens of an account that the chart does not name.
	w.Apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: other, namespace: external, annotations: {heimdall.nasp.k8s.cisco.com/allowed: "true"}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: other, namespace: external, labels: {nasp.k8s.cisco.com/monitoring: "true"}}
spec: {template: {serviceAccount: other}}
`)
	w.wantEvent("TokenFailed")

	// A Secret that is somebody else's stays what it is.
	w.Apply(t, `
apiVersion: v1
kind: Secret
metadata: {name: test-http-nasp-token, namespace: external}
type: Opaque
stringData: {token: theirs}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: test-http, namespace: external, labels: {nasp.k8s.cisco.com/monitoring: "true"}}
spec: {template: {serviceAccount: test-http, network: network2}}
`)
	w.wantEvent("SecretNotOwned")
	if got := w.token(); got != "theirs" {
		t.Errorf("it holds %q", got)
	}
	// "theirs" is no token, and a word that logs may use.
	w.tokens = slices.DeleteFunc(w.tokens, func(s string) bool { return s == "theirs" })
	if err := w.stop(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// An API server that is away for a while is told, and needs no restart.
func TestClusterAPIAway(t *testing.T) {
	w := install(t)
	token := w.issued()
	w.eventually("an enrolment", func() bool { _, err := w.enroll(token); return err == nil })
	w.StopAPIServer()
	w.refused(token, heimdall.ErrUnavailable, "Kubernetes API does not answer")
	if w.status("/healthz") != http.StatusOK || w.status("/readyz") != http.StatusOK {
		t.Error("it is not ready")
	}
	// Longer than a lease can go without being renewed.
	w.eventually("the lease is lost", func() bool { return strings.Contains(w.logs.String(), "the controller ended and is started again") })
	w.StartAPIServer(t)
	w.eventually("an enrolment", func() bool { _, err := w.enroll(token); return err == nil })
	w.patch(group, "annotations", kube.LifeAnnotation, "1h")
	w.eventually("the controller works", func() bool {
		issued, expiry := heimdall.NewSecret(w.token()).Life()
		return expiry.Sub(issued) == time.Hour
	})
}

// status asks the inner port; 0: it does not answer.
func (w *world) status(path string) int {
	h, err := rest.HTTPClientFor(&rest.Config{Host: w.inner})
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.inner+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := h.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
