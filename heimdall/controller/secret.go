// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

// What nasp's users and programs find a token by.
const (
	secretType   = "nasp.k8s.cisco.com/access-token"
	groupLabel   = "nasp.k8s.cisco.com/workloadgroup"
	tokenKey     = "token"
	secretSuffix = "-nasp-token"
)

func secretName(group string) string { return group + secretSuffix }

// owned reports whether a Secret is that of this very group.
func owned(s *corev1.Secret, g *unstructured.Unstructured) bool {
	return ownedByName(s, g.GetName()) && metav1.IsControlledBy(s, g)
}

// ownedByName reports whether a Secret is, or was, that of a group of this
// name.
func ownedByName(s *corev1.Secret, group string) bool {
	ref := metav1.GetControllerOf(s)
	if ref == nil || s.Type != secretType {
		return false
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	return err == nil && gv.Group == GroupKind.Group && ref.Kind == GroupKind.Kind && ref.Name == group
}

// ownedByPredecessor reports whether a Secret is that of a group which had
// this name before: its owner cannot be alive.
func ownedByPredecessor(s *corev1.Secret, g *unstructured.Unstructured) bool {
	return ownedByName(s, g.GetName()) && !metav1.IsControlledBy(s, g)
}

// fill makes a Secret the group's.
func fill(s *corev1.Secret, g *unstructured.Unstructured, life time.Duration, token string) error {
	s.Namespace, s.Name, s.Type = g.GetNamespace(), secretName(g.GetName()), secretType
	if s.Labels == nil {
		s.Labels = make(map[string]string)
	}
	if s.Annotations == nil {
		s.Annotations = make(map[string]string)
	}
	s.Labels[groupLabel] = g.GetName()
	// The life that was asked for, which is not always the one that was given.
	s.Annotations[kube.LifeAnnotation] = life.String()
	s.Data = map[string][]byte{tokenKey: []byte(token)}
	// Blocking the owner's deletion would need a right on WorkloadGroups.
	err := controllerutil.SetControllerReference(g, s, scheme.Scheme, controllerutil.WithBlockOwnerDeletion(false))
	if err != nil {
		return fmt.Errorf("own Secret %s: %w", s.Name, err)
	}
	return nil
}

// intact reports whether a Secret is as fill left it, and asked for this life.
func intact(s *corev1.Secret, g *unstructured.Unstructured, life time.Duration) bool {
	return s.Annotations[kube.LifeAnnotation] == life.String() && s.Labels[groupLabel] == g.GetName() && len(s.Data) == 1
}

// renewAt is when the token in a Secret is replaced: at half its life, and at
// once if it is not one that the group's account has now.
func renewAt(s *corev1.Secret, g *unstructured.Unstructured, account *metav1.PartialObjectMetadata) time.Time {
	token := heimdall.NewSecret(string(s.Data[tokenKey]))
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var c struct {
		Sub        string
		Aud        []string
		Kubernetes struct {
			ServiceAccount struct{ UID string }
		} `json:"kubernetes.io"`
	}
	if json.Unmarshal(body, &c) != nil {
		return time.Time{}
	}
	subject := "system:serviceaccount:" + account.GetNamespace() + ":" + account.GetName()
	if c.Sub != subject || len(c.Aud) != 1 || c.Aud[0] != kube.Audience(g.GetNamespace(), g.GetName()) ||
		c.Kubernetes.ServiceAccount.UID != string(account.GetUID()) {
		return time.Time{}
	}
	issued, expiry := token.Life()
	if issued.IsZero() || !issued.Before(expiry) {
		return time.Time{}
	}
	return issued.Add(expiry.Sub(issued) / 2)
}
