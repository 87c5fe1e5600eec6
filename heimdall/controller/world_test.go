// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

var key = client.ObjectKey{Namespace: "external", Name: "test-http"}

// A world is a reconciler over objects in memory. What only a real API server
// can tell is tested against one, in cluster_test.go.
type world struct {
	t        *testing.T
	client   client.Client
	r        *reconciler
	recorder *events.FakeRecorder
	minted   int
	mintErr  error
	now      time.Time
}

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	w := &world{t: t, recorder: events.NewFakeRecorder(100), now: time.Now().Truncate(time.Second)}
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	s.AddKnownTypeWithName(GroupKind, &unstructured.Unstructured{})
	s.AddKnownTypeWithName(GroupKind.GroupVersion().WithKind(GroupKind.Kind+"List"), &unstructured.UnstructuredList{})
	w.client = fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{SubResourceCreate: w.mint}).Build()
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r, err := newReconciler(w.client, w.recorder, Config{Namespaces: []string{"external"}, Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	r.now = func() time.Time { return w.now }
	w.r = r
	return w
}

// mint stands in for the API server's TokenRequest.
func (w *world) mint(ctx context.Context, c client.Client, sub string, obj, out client.Object, _ ...client.SubResourceCreateOption) error {
	if w.mintErr != nil {
		return w.mintErr
	}
	account := newAccount()
	if err := c.Get(ctx, client.ObjectKeyFromObject(obj), account); err != nil {
		return err
	}
	request, ok := out.(*authenticationv1.TokenRequest)
	if !ok || sub != "token" {
		return fmt.Errorf("%s of %T", sub, out)
	}
	w.minted++
	expiry := w.now.Add(time.Duration(*request.Spec.ExpirationSeconds) * time.Second)
	claims, err := json.Marshal(map[string]any{
		"sub": "system:serviceaccount:" + obj.GetNamespace() + ":" + obj.GetName(), "aud": request.Spec.Audiences,
		"iat": w.now.Unix(), "exp": expiry.Unix(), "jti": w.minted,
		"kubernetes.io": map[string]any{"serviceaccount": map[string]any{"uid": account.GetUID()}},
	})
	if err != nil {
		return err
	}
	request.Status.Token = "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"
	request.Status.ExpirationTimestamp = metav1.NewTime(expiry)
	return nil
}

func (w *world) reconcile() reconcile.Result {
	w.t.Helper()
	res, err := w.r.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: key})
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// events returns the reasons of what was told since the last time.
func (w *world) events() []string {
	var all []string
	for {
		select {
		case e := <-w.recorder.Events:
			all = append(all, strings.Fields(e)[1])
		default:
			return all
		}
	}
}

func (w *world) wantEvents(want ...string) {
	w.t.Helper()
	if got := w.events(); !slices.Equal(got, want) {
		w.t.Errorf("events %v, want %v", got, want)
	}
}

// secret returns the group's Secret; nil: there is none.
func (w *world) secret() *corev1.Secret {
	w.t.Helper()
	s := &corev1.Secret{}
	err := w.client.Get(w.t.Context(), client.ObjectKey{Namespace: "external", Name: "test-http-nasp-token"}, s)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// change edits the group, or another object.
func (w *world) change(o client.Object, edit func()) {
	w.t.Helper()
	if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		w.t.Fatal(err)
	}
	edit()
	if err := w.client.Update(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(o client.Object) {
	w.t.Helper()
	if err := w.client.Delete(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func group(uid string) *unstructured.Unstructured {
	g := newGroup()
	g.SetNamespace("external")
	g.SetName("test-http")
	g.SetUID(types.UID(uid))
	g.SetLabels(map[string]string{kube.MonitoringLabel: "true"})
	g.Object["spec"] = map[string]any{"template": map[string]any{"serviceAccount": "test-http"}}
	return g
}

func account(uid string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
		Namespace: "external", Name: "test-http", UID: types.UID(uid), Annotations: map[string]string{kube.AllowedAnnotation: "true"},
	}}
}
