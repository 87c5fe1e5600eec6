// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

// Reasons of Events.
const (
	reasonIssued    = "TokenIssued"
	reasonRenewed   = "TokenRenewed"
	reasonRemoved   = "TokenRemoved"
	reasonFailed    = "TokenFailed"
	reasonNotOwned  = "SecretNotOwned"
	reasonNoAccount = "NoServiceAccount"
	reasonMissing   = "ServiceAccountMissing"
	reasonForbidden = "ServiceAccountNotAllowed"
	reasonLongName  = "NameTooLong"
	reasonLife      = "TokenLifeAdjusted"
)

// A reconciler makes one group's Secret what it should be.
type reconciler struct {
	client     client.Client
	recorder   events.EventRecorder
	metrics    *Metrics
	anyAccount bool
	now        func() time.Time

	mu   sync.Mutex
	said map[client.ObjectKey]string // the last warning about a group
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	g := newGroup()
	err := r.client.Get(ctx, req.NamespacedName, g)
	if apierrors.IsNotFound(err) || err == nil && g.GetDeletionTimestamp() != nil {
		// The owner reference is for the cluster's garbage collector, which is
		// not everywhere and may take its time.
		r.forget(req.NamespacedName)
		return reconcile.Result{}, r.remove(ctx, req.NamespacedName, nil, "the group is gone")
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if g.GetLabels()[kube.MonitoringLabel] != "true" {
		r.forget(req.NamespacedName)
		return reconcile.Result{}, r.remove(ctx, req.NamespacedName, g, "the group has no label "+kube.MonitoringLabel+"=true")
	}
	account, reason, note, err := r.account(ctx, g)
	if err != nil {
		return reconcile.Result{}, err
	}
	if reason != "" {
		r.warn(g, reason, note)
		return reconcile.Result{RequeueAfter: resync}, r.remove(ctx, req.NamespacedName, g, note)
	}
	after, err := r.keep(ctx, g, account)
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		r.warn(g, reasonFailed, err.Error())
		r.metrics.tokens.WithLabelValues("failed").Inc()
	}
	return reconcile.Result{RequeueAfter: after}, err
}

// account returns the account of a group, or the reason why there is no token
// of it.
func (r *reconciler) account(ctx context.Context, g *unstructured.Unstructured) (account *metav1.PartialObjectMetadata, reason, note string, err error) {
	name := accountOf(g)
	if name == "" {
		return nil, reasonNoAccount, "spec.template.serviceAccount is not set", nil
	}
	if len(validation.IsValidLabelValue(g.GetName())) > 0 {
		return nil, reasonLongName, "the name does not fit into the label of a Secret: 63 characters are the most", nil
	}
	account = newAccount()
	err = r.client.Get(ctx, client.ObjectKey{Namespace: g.GetNamespace(), Name: name}, account)
	switch {
	case apierrors.IsNotFound(err):
		return nil, reasonMissing, fmt.Sprintf("ServiceAccount %s does not exist", name), nil
	case err != nil:
		return nil, "", "", err
	case !r.anyAccount && account.GetAnnotations()[kube.AllowedAnnotation] != "true":
		return nil, reasonForbidden, fmt.Sprintf("ServiceAccount %s has no annotation %s=true", name, kube.AllowedAnnotation), nil
	}
	return account, "", "", nil
}

// keep sees to it that the group's Secret has a token with enough life left,
// and returns when to look again.
func (r *reconciler) keep(ctx context.Context, g *unstructured.Unstructured, account *metav1.PartialObjectMetadata) (time.Duration, error) {
	s := &corev1.Secret{}
	err := r.client.Get(ctx, client.ObjectKey{Namespace: g.GetNamespace(), Name: secretName(g.GetName())}, s)
	exists := err == nil
	if err != nil && !apierrors.IsNotFound(err) {
		return 0, err
	}
	if exists && ownedByPredecessor(s, g) {
		if err := r.delete(ctx, s); err != nil {
			return 0, err
		}
		exists = false
	}
	if exists && !owned(s, g) {
		r.warn(g, reasonNotOwned, fmt.Sprintf("Secret %s exists and is not this group's: it is left as it is, and there is no token", s.Name))
		return resync, nil
	}
	life, lifeErr := kube.TokenLife(g.GetAnnotations()[kube.LifeAnnotation])
	if lifeErr != nil {
		r.warn(g, reasonLife, lifeErr.Error())
	}
	if exists && intact(s, g, life) {
		if renewal := renewAt(s, g, account); r.now().Before(renewal) {
			r.observe(g, heimdall.NewSecret(string(s.Data[tokenKey])))
			r.settled(g, lifeErr)
			return min(resync, renewal.Sub(r.now())), nil
		}
	}
	if err := r.renew(ctx, g, account, s, exists, life); err != nil {
		return 0, err
	}
	r.settled(g, lifeErr)
	return resync, nil
}

// settled ends what was told of a group, when there is nothing left to tell.
func (r *reconciler) settled(g *unstructured.Unstructured, err error) {
	if err == nil {
		r.forget(client.ObjectKeyFromObject(g))
	}
}

// renew mints a token and puts it into the Secret.
func (r *reconciler) renew(ctx context.Context, g *unstructured.Unstructured, account *metav1.PartialObjectMetadata, s *corev1.Secret, exists bool, life time.Duration) error {
	seconds := int64(life.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{kube.Audience(g.GetNamespace(), g.GetName())}, ExpirationSeconds: &seconds,
	}}
	subject := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: account.GetNamespace(), Name: account.GetName()}}
	if err := r.client.SubResource("token").Create(ctx, subject, request); err != nil {
		return fmt.Errorf("mint a token of account %s: %w", account.GetName(), err)
	}
	if !exists {
		s = &corev1.Secret{}
	}
	if err := fill(s, g, life, request.Status.Token); err != nil {
		return err
	}
	reason, result, write := reasonIssued, "issued", func() error { return r.client.Create(ctx, s) }
	if exists {
		reason, result, write = reasonRenewed, "renewed", func() error { return r.client.Update(ctx, s) }
	}
	if err := write(); err != nil {
		return fmt.Errorf("write Secret %s: %w", s.Name, err)
	}
	r.metrics.tokens.WithLabelValues(result).Inc()
	r.observe(g, heimdall.NewSecret(request.Status.Token))
	until := request.Status.ExpirationTimestamp.UTC().Format(time.RFC3339)
	r.recorder.Eventf(g, nil, corev1.EventTypeNormal, reason, "Mint", "Secret %s has a token until %s", s.Name, until)
	log.FromContext(ctx).Info("token written", "secret", s.Name, "account", account.GetName(), "expires", until)
	return nil
}

// remove deletes the Secret of a group, if it is the group's. A group that is
// gone is nil.
func (r *reconciler) remove(ctx context.Context, group client.ObjectKey, g *unstructured.Unstructured, why string) error {
	r.metrics.expiry.DeleteLabelValues(group.Namespace, group.Name)
	s := &corev1.Secret{}
	err := r.client.Get(ctx, client.ObjectKey{Namespace: group.Namespace, Name: secretName(group.Name)}, s)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !ownedByName(s, group.Name) || g != nil && !owned(s, g) && !ownedByPredecessor(s, g) {
		return nil
	}
	if err := r.delete(ctx, s); err != nil {
		return err
	}
	r.metrics.tokens.WithLabelValues("removed").Inc()
	log.FromContext(ctx).Info("token removed", "secret", s.Name, "reason", why)
	if g != nil {
		r.recorder.Eventf(g, nil, corev1.EventTypeNormal, reasonRemoved, "Remove", "Secret %s is removed: %s", s.Name, why)
	}
	return nil
}

// delete removes just this Secret, not one that took its place.
func (r *reconciler) delete(ctx context.Context, s *corev1.Secret) error {
	err := r.client.Delete(ctx, s, client.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion})
	return client.IgnoreNotFound(err)
}

// warn tells of a group what has not just been told.
func (r *reconciler) warn(g *unstructured.Unstructured, reason, note string) {
	key := client.ObjectKeyFromObject(g)
	r.mu.Lock()
	again := r.said[key] == reason+note
	r.said[key] = reason + note
	r.mu.Unlock()
	if again {
		return
	}
	r.metrics.warnings.WithLabelValues(reason).Inc()
	// The note may hold a cause with percent signs.
	r.recorder.Eventf(g, nil, corev1.EventTypeWarning, reason, "Mint", "%s", note)
}

// forget lets the next warning about a group be told.
func (r *reconciler) forget(group client.ObjectKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.said, group)
}

func (r *reconciler) observe(g *unstructured.Unstructured, token heimdall.Secret) {
	if _, expiry := token.Life(); !expiry.IsZero() {
		r.metrics.expiry.WithLabelValues(g.GetNamespace(), g.GetName()).Set(float64(expiry.Unix()))
	}
}
