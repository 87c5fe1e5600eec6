// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

func TestIssueAndRenew(t *testing.T) {
	w := newWorld(t, group("g1"), account("a1"))
	if res := w.reconcile(); res.RequeueAfter != resync {
		t.Errorf("looked at again after %s", res.RequeueAfter)
	}
	w.wantEvents(reasonIssued)
	s := w.secret()
	if s == nil {
		t.Fatal("no Secret")
	}
	if s.Type != "nasp.k8s.cisco.com/access-token" || s.Labels["nasp.k8s.cisco.com/workloadgroup"] != "test-http" || len(s.Data) != 1 {
		t.Errorf("Secret %+v", s.ObjectMeta)
	}
	ref := metav1.GetControllerOf(s)
	if ref == nil || ref.UID != "g1" || ref.Kind != "WorkloadGroup" || ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion {
		t.Errorf("owner %+v", ref)
	}
	first := string(s.Data["token"])
	// Nothing happens in the first half of the life.
	w.now = w.now.Add(12*time.Hour - 10*time.Second)
	if res := w.reconcile(); res.RequeueAfter != 10*time.Second || w.minted != 1 {
		t.Errorf("after %s, %d tokens", res.RequeueAfter, w.minted)
	}
	w.now = w.now.Add(10 * time.Second)
	w.reconcile()
	w.wantEvents(reasonRenewed)
	if got := string(w.secret().Data["token"]); got == first {
		t.Error("not renewed at half life")
	}
	if got := testutil.ToFloat64(w.r.metrics.expiry.WithLabelValues("external", "test-http")); got != float64(w.now.Add(24*time.Hour).Unix()) {
		t.Errorf("expiry metric %f", got)
	}
}

// Whatever makes the token or its Secret unfit makes a new one at once.
func TestReplaced(t *testing.T) {
	tests := []struct {
		name string
		do   func(w *world)
		want string
	}{
		{"deleted", func(w *world) { w.remove(w.secret()) }, reasonIssued},
		{"garbage", func(w *world) { s := w.secret(); w.change(s, func() { s.Data["token"] = []byte("x") }) }, reasonRenewed},
		{"label lost", func(w *world) { s := w.secret(); w.change(s, func() { s.Labels = nil }) }, reasonRenewed},
		{"another key", func(w *world) { s := w.secret(); w.change(s, func() { s.Data["more"] = []byte("x") }) }, reasonRenewed},
		{"other life", func(w *world) {
			g := group("")
			w.change(g, func() { g.SetAnnotations(map[string]string{kube.LifeAnnotation: "1h"}) })
		}, reasonRenewed},
		{"other account", func(w *world) {
			a := account("a2")
			a.Name = "second"
			if err := w.client.Create(w.t.Context(), a); err != nil {
				w.t.Fatal(err)
			}
			g := group("")
			w.change(g, func() {
				g.Object["spec"] = map[string]any{"template": map[string]any{"serviceAccount": "second"}}
			})
		}, reasonRenewed},
		{"account made again", func(w *world) {
			w.remove(account("a1"))
			if err := w.client.Create(w.t.Context(), account("a9")); err != nil {
				w.t.Fatal(err)
			}
		}, reasonRenewed},
		{"group made again", func(w *world) {
			w.remove(group("g1"))
			if err := w.client.Create(w.t.Context(), group("g9")); err != nil {
				w.t.Fatal(err)
			}
		}, reasonIssued},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, group("g1"), account("a1"))
			w.reconcile()
			w.events()
			tt.do(w)
			w.reconcile()
			w.wantEvents(tt.want)
			w.reconcile()
			w.wantEvents()
			if w.minted != 2 {
				t.Errorf("%d tokens were minted", w.minted)
			}
			if g := w.current(); !owned(w.secret(), g) {
				t.Error("the Secret is not the group's")
			}
		})
	}
}

func (w *world) current() *unstructured.Unstructured {
	w.t.Helper()
	g := newGroup()
	if err := w.client.Get(w.t.Context(), key, g); err != nil {
		w.t.Fatal(err)
	}
	return g
}

// The Secret goes with the label, the group, the account and its consent.
func TestRemoved(t *testing.T) {
	tests := []struct {
		name string
		do   func(w *world)
		want []string
	}{
		{"label", func(w *world) { g := group(""); w.change(g, func() { g.SetLabels(nil) }) }, []string{reasonRemoved}},
		{"group", func(w *world) { w.remove(group("g1")) }, nil},
		{"account", func(w *world) { w.remove(account("a1")) }, []string{reasonMissing, reasonRemoved}},
		{"consent", func(w *world) {
			a := account("")
			w.change(a, func() { a.Annotations[kube.AllowedAnnotation] = "yes" })
		}, []string{reasonForbidden, reasonRemoved}},
		{"account's name", func(w *world) { g := group(""); w.change(g, func() { delete(g.Object, "spec") }) }, []string{reasonNoAccount, reasonRemoved}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, group("g1"), account("a1"))
			w.reconcile()
			w.events()
			tt.do(w)
			w.reconcile()
			if w.secret() != nil {
				t.Error("the Secret is there")
			}
			w.wantEvents(tt.want...)
			w.reconcile() // and told once
			w.wantEvents()
			if n := testutil.CollectAndCount(w.r.metrics.expiry); n != 0 {
				t.Errorf("%d expiry metrics are left", n)
			}
		})
	}
}

// A Secret that somebody else made is left alone, with and without the label.
func TestForeignSecret(t *testing.T) {
	foreign := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "external", Name: "test-http-nasp-token", Labels: map[string]string{groupLabel: "test-http"}},
		Type:       secretType, Data: map[string][]byte{"token": []byte("theirs")},
	}
	otherOwner := foreign.DeepCopy()
	yes := true
	otherOwner.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "networking.istio.io/v1", Kind: "WorkloadGroup", Name: "another", UID: "g5", Controller: &yes,
	}}
	opaque := foreign.DeepCopy()
	opaque.Type = corev1.SecretTypeOpaque
	for name, s := range map[string]*corev1.Secret{"no owner": foreign, "other owner": otherOwner, "other type": opaque} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, group("g1"), account("a1"), s.DeepCopy())
			w.reconcile()
			w.reconcile()
			w.wantEvents(reasonNotOwned)
			g := group("")
			w.change(g, func() { g.SetLabels(nil) })
			w.reconcile()
			w.remove(group("g1"))
			w.reconcile()
			w.wantEvents()
			if got := w.secret(); got == nil || string(got.Data["token"]) != "theirs" || w.minted != 0 {
				t.Errorf("Secret %v, %d tokens minted", got, w.minted)
			}
		})
	}
}

func TestLifeAnnotation(t *testing.T) {
	for annotation, want := range map[string]struct {
		life   time.Duration
		events []string
	}{
		"1h":   {time.Hour, []string{reasonIssued}},
		"1m":   {kube.MinTokenLife, []string{reasonLife, reasonIssued}},
		"soon": {kube.DefaultTokenLife, []string{reasonLife, reasonIssued}},
	} {
		t.Run(annotation, func(t *testing.T) {
			g := group("g1")
			g.SetAnnotations(map[string]string{kube.LifeAnnotation: annotation})
			w := newWorld(t, g, account("a1"))
			w.reconcile()
			w.reconcile()
			w.wantEvents(want.events...)
			if got := testutil.ToFloat64(w.r.metrics.expiry.WithLabelValues("external", "test-http")); got != float64(w.now.Add(want.life).Unix()) {
				t.Errorf("ends at %f", got)
			}
		})
	}
}

// A failure is told once, tried again, and over when it is over.
func TestMintFails(t *testing.T) {
	w := newWorld(t, group("g1"), account("a1"))
	w.mintErr = errors.New("100% of the API is away")
	for range 2 {
		if _, err := w.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); !errors.Is(err, w.mintErr) {
			t.Fatal(err)
		}
	}
	w.wantEvents(reasonFailed)
	if got := testutil.ToFloat64(w.r.metrics.tokens.WithLabelValues("failed")); got != 2 {
		t.Errorf("%f failures counted", got)
	}
	w.mintErr = nil
	w.reconcile()
	w.wantEvents(reasonIssued)
}

func TestLongName(t *testing.T) {
	g := group("g1")
	g.SetName(strings.Repeat("a", 64))
	w := newWorld(t, g, account("a1"))
	if _, err := w.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(g)}); err != nil {
		t.Fatal(err)
	}
	w.wantEvents(reasonLongName)
}

// A chart value takes accounts that nobody annotated.
func TestAnyAccount(t *testing.T) {
	a := account("a1")
	a.Annotations = nil
	w := newWorld(t, group("g1"), a)
	w.r.anyAccount = true
	w.reconcile()
	w.wantEvents(reasonIssued)
}

// A change of an account concerns the groups that name it.
func TestGroupsOfAccount(t *testing.T) {
	other := group("g2")
	other.SetName("other")
	other.Object["spec"] = map[string]any{"template": map[string]any{"serviceAccount": "else"}}
	w := newWorld(t, group("g1"), other, account("a1"))
	got := w.r.groupsOf(t.Context(), account("a1"))
	if len(got) != 1 || got[0].NamespacedName != key {
		t.Errorf("groups %v", got)
	}
}
