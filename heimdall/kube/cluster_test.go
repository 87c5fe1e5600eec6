// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
	"github.com/nasp-tun/nasp-tun/heimdall/kube/kubetest"
)

// A laptop with the Roles that are printed, and no other right, enrols at a
// real API server.
func TestClusterRoles(t *testing.T) {
	c := kubetest.Start(t)
	c.Apply(t, kubetest.Istio)
	root, err := kube.New(kube.Config{REST: c.REST()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	c.Apply(t, `{apiVersion: v1, kind: ServiceAccount, metadata: {name: laptop, namespace: default}}`)
	const api = "https://kubernetes.default.svc"
	user, _, err := root.Mint(t.Context(), "default", "laptop", api, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	laptop, err := kube.New(kube.Config{REST: c.As(user.Reveal())})
	if err != nil {
		t.Fatal(err)
	}
	defer laptop.Close()
	w := kube.Workload{Namespace: "external", ServiceAccount: "test-http"}
	if _, err := laptop.Enroll(t.Context(), w); !errors.Is(err, kube.ErrForbidden) {
		t.Fatalf("without a Role: %v", err)
	}
	c.Apply(t, kube.Roles("system:serviceaccount:default:laptop", "external", "test-http", "", ""))
	e, err := laptop.Enroll(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	if e.IstiodAddress != "172.30.0.10:15012" || e.MeshID != "mesh1" || e.TrustDomain != "td1" || e.Network != "network1" {
		t.Errorf("enrolment %+v", e)
	}
	if got, err := root.Review(t.Context(), e.Token, kube.IstioAudience); err != nil || got.Name != "test-http" {
		t.Errorf("token is one of %v, %v", got, err)
	}
	if _, err := root.Review(t.Context(), e.Token, kube.Audience("external", "test-http")); !errors.Is(err, kube.ErrNotAuthentic) {
		t.Errorf("token for another audience: %v", err)
	}
	// The Roles are of that account alone, and no one's Secrets.
	if _, err := laptop.Enroll(t.Context(), kube.Workload{Namespace: "external", ServiceAccount: "other"}); !errors.Is(err, kube.ErrForbidden) {
		t.Errorf("another account: %v", err)
	}
	if _, err := laptop.SecretData(t.Context(), "external", "x"); !errors.Is(err, kube.ErrForbidden) {
		t.Errorf("a Secret: %v", err)
	}
	c.StopAPIServer()
	if _, err := laptop.Enroll(t.Context(), w); !errors.Is(err, kube.ErrUnavailable) {
		t.Errorf("API away: %v", err)
	}
	c.StartAPIServer(t)
	if _, err := laptop.Enroll(t.Context(), w); err != nil {
		t.Errorf("API back: %v", err)
	}
}
