// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

// Path is where the API server calls.
const Path = "/mutate-pod"

// Config configures the webhook.
type Config struct {
	Image      string            // of nasp-tun
	PullPolicy corev1.PullPolicy // "": that of the API server
	// Namespace is Heimdall's own, whose pods are left alone, as those of
	// kube-system: what must run before anything else cannot wait for it.
	Namespace string
	// Mesh is kube.Client.Mesh.
	Mesh   func(context.Context) (kube.Mesh, error)
	Logger *slog.Logger // nil: nobody is told
}

var (
	errNoImage = errors.New("heimdall webhook: no image of nasp-tun")
	errNoMesh  = errors.New("heimdall webhook: no mesh to ask")
)

// New returns the handler of Path.
func New(cfg Config) (http.Handler, error) {
	if cfg.Image == "" {
		return nil, errNoImage
	}
	if cfg.Mesh == nil {
		return nil, errNoMesh
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	hook, err := admission.StandaloneWebhook(&admission.Webhook{Handler: &handler{cfg}}, admission.StandaloneOptions{
		Logger: logr.FromSlogHandler(cfg.Logger.Handler()), MetricsPath: Path,
	})
	if err != nil {
		return nil, fmt.Errorf("heimdall webhook: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+Path, hook)
	return mux, nil
}

type handler struct{ cfg Config }

// Handle implements admission.Handler.
func (h *handler) Handle(ctx context.Context, req admission.Request) admission.Response {
	if req.Operation != admissionv1.Create || req.Resource.Resource != "pods" || req.SubResource != "" {
		return admission.Allowed("not a new pod")
	}
	if req.Namespace == "kube-system" || req.Namespace == h.cfg.Namespace {
		return admission.Allowed("not in this namespace")
	}
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read the pod: %w", err))
	}
	if pod.Labels[InjectLabel] != "true" {
		return admission.Allowed("not asked for")
	}
	m, err := h.cfg.Mesh(ctx)
	if err != nil {
		h.cfg.Logger.ErrorContext(ctx, "pod not injected", "namespace", req.Namespace, "err", err)
		return admission.Errored(http.StatusServiceUnavailable, fmt.Errorf("read the mesh: %w", err))
	}
	changed, err := h.inject(&pod, req.Namespace, m)
	if err != nil {
		return admission.Denied(err.Error())
	}
	if !changed {
		return admission.Allowed("injected before")
	}
	b, err := json.Marshal(&pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	h.cfg.Logger.InfoContext(ctx, "pod injected", "namespace", req.Namespace, "pod", workloadName(&pod))
	return admission.PatchResponseFromRaw(req.Object.Raw, b)
}
