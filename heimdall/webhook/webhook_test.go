// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

var update = flag.Bool("update", false, "write the golden pod")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mesh(context.Context) (kube.Mesh, error) {
	return kube.Mesh{
		ServerName: "istiod.istio-system.svc", Revision: "default", ClusterID: "Kubernetes", MeshID: "mesh1", DNSDomain: "cluster.local", Network: "network1",
	}, nil
}

func config() Config { return Config{Image: "nasp-tun:test", Namespace: "heimdall", Mesh: mesh} }

func read(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(b, into); err != nil {
		t.Fatal(err)
	}
}

// The pod that comes out is the one that was agreed on.
func TestGoldenPod(t *testing.T) {
	var pod corev1.Pod
	read(t, "pod.yaml", &pod)
	m, err := mesh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := &handler{config()}
	if changed, err := h.inject(&pod, "external", m); err != nil || !changed {
		t.Fatalf("changed %t, %v", changed, err)
	}
	if *update {
		b, err := yaml.Marshal(&pod)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("testdata", "injected.yaml"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var want corev1.Pod
	read(t, "injected.yaml", &want)
	if d := cmp.Diff(&want, &pod); d != "" {
		t.Errorf("pod (-want +got):\n%s", d)
	}
	// The API server may call again after other webhooks.
	if changed, err := h.inject(&pod, "external", m); err != nil || changed {
		t.Errorf("the second time: changed %t, %v", changed, err)
	}
}

func TestWorkloadName(t *testing.T) {
	yes := true
	for want, pod := range map[string]corev1.Pod{
		"bare":   {ObjectMeta: metav1.ObjectMeta{Name: "bare"}},
		"made":   {ObjectMeta: metav1.ObjectMeta{GenerateName: "made-"}},
		"sts":    {ObjectMeta: metav1.ObjectMeta{Name: "sts-0", OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Name: "sts", Controller: &yes}}}},
		"deploy": {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"pod-template-hash": "5d44"}, OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "deploy-5d44", Controller: &yes}}}},
	} {
		if got := workloadName(&pod); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestHandle(t *testing.T) {
	pod := func(edit func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{InjectLabel: "true"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		if edit != nil {
			edit(&p)
		}
		return p
	}
	tests := []struct {
		name    string
		edit    func(*corev1.Pod)
		request func(*admission.Request)
		cfg     func(*Config)
		patched bool
		code    int32
		text    string
	}{
		{name: "asked for", patched: true, code: 200},
		{name: "not asked for", edit: func(p *corev1.Pod) { p.Labels = nil }, code: 200},
		{name: "no", edit: func(p *corev1.Pod) { p.Labels[InjectLabel] = "false" }, code: 200},
		{name: "kube-system", request: func(r *admission.Request) { r.Namespace = "kube-system" }, code: 200},
		{name: "own namespace", request: func(r *admission.Request) { r.Namespace = "heimdall" }, code: 200},
		{name: "an update", request: func(r *admission.Request) { r.Operation = admissionv1.Update }, code: 200},
		{name: "a subresource", request: func(r *admission.Request) { r.SubResource = "exec" }, code: 200},
		{name: "injected", edit: func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "nasp-tun"}} }, code: 200},
		{name: "Istio's sidecar", edit: func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy"})
		}, code: 403, text: "sidecar.istio.io/inject=false"},
		{name: "host network", edit: func(p *corev1.Pod) { p.Spec.HostNetwork = true }, code: 403, text: "host's network"},
		{name: "garbage", request: func(r *admission.Request) { r.Object.Raw = []byte("{") }, code: 400, text: "read the pod"},
		{name: "no mesh", cfg: func(c *Config) {
			c.Mesh = func(context.Context) (kube.Mesh, error) { return kube.Mesh{}, kube.ErrNoIstiod }
		}, code: 503, text: "no istiod"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := pod(tt.edit)
			raw, err := json.Marshal(&p)
			if err != nil {
				t.Fatal(err)
			}
			req := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
				Namespace: "testing", Operation: admissionv1.Create, Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
				Object: runtime.RawExtension{Raw: raw},
			}}
			if tt.request != nil {
				tt.request(&req)
			}
			cfg := config()
			if tt.cfg != nil {
				tt.cfg(&cfg)
			}
			if _, err := New(cfg); err != nil {
				t.Fatal(err)
			}
			cfg.Logger = slog.New(slog.DiscardHandler)
			got := (&handler{cfg}).Handle(t.Context(), req)
			patches := len(got.Patches)
			if err := got.Complete(req); err != nil {
				t.Fatal(err)
			}
			if (patches > 0) != tt.patched || got.Allowed != (tt.code == 200) || got.Result.Code != tt.code || !strings.Contains(got.Result.Message, tt.text) {
				t.Errorf("allowed %t, %d patches, %+v", got.Allowed, patches, got.Result)
			}
		})
	}
}

// What the API server sends and gets.
func TestServe(t *testing.T) {
	h, err := New(config())
	if err != nil {
		t.Fatal(err)
	}
	review := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"CREATE","namespace":"testing",
"resource":{"group":"","version":"v1","resource":"pods"},"object":{"metadata":{"name":"a","labels":{"nasp.k8s.cisco.com/inject":"true"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`
	req := httptest.NewRequest(http.MethodPost, Path, strings.NewReader(review))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil || answer.Response == nil {
		t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
	}
	if r := answer.Response; !r.Allowed || r.UID != "u1" || !strings.Contains(string(r.Patch), "NET_ADMIN") {
		t.Errorf("answer %+v", r)
	}
	if _, err := New(Config{}); !errors.Is(err, errNoImage) {
		t.Errorf("no image: %v", err)
	}
	if _, err := New(Config{Image: "i"}); !errors.Is(err, errNoMesh) {
		t.Errorf("no mesh: %v", err)
	}
}
