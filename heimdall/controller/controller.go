// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	// resync is how often a group's Secret is looked at without a cause.
	resync = 30 * time.Second
	// Waits after failures double from firstRetry to lastRetry, so that a
	// cluster whose API was away for a minute is served soon after.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// leaseName is that of the leader's Lease.
	leaseName = "heimdall.nasp.k8s.cisco.com"
	// events and the recorder know us by this name.
	controllerName = "heimdall"
)

// GroupKind is the kind of what is watched. The version is one that every
// Istio of this decade serves.
var GroupKind = schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1beta1", Kind: "WorkloadGroup"}

// newGroup is an empty WorkloadGroup, to be read into.
func newGroup() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(GroupKind)
	return u
}

// newAccount is the metadata of a ServiceAccount, to be read into: no more of
// it is looked at or kept.
func newAccount() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	return m
}

// Config configures the controller.
type Config struct {
	// Namespaces are those whose groups are looked at; at least one.
	Namespaces []string
	// AnyAccount takes accounts without the annotation that allows it: then
	// whoever may edit WorkloadGroups of a namespace has the accounts of it.
	AnyAccount bool
	// LeaseNamespace is where replicas agree which of them works; "": there is
	// one replica.
	LeaseNamespace string
	Metrics        *Metrics // nil: nobody sees them
}

var errNoNamespace = errors.New("heimdall controller: no namespace to work in")

// Options are those of a manager that has no more rights than the Roles of
// its namespaces.
func Options(cfg Config) ctrl.Options {
	namespaces := make(map[string]cache.Config, len(cfg.Namespaces))
	for _, n := range cfg.Namespaces {
		namespaces[n] = cache.Config{}
	}
	// Names of controllers are unique in a process, which has one; tests have
	// several.
	skip := true
	return ctrl.Options{
		Scheme:                        scheme.Scheme,
		Cache:                         cache.Options{DefaultNamespaces: namespaces},
		Client:                        client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // the server's port has them
		HealthProbeBindAddress:        "0",
		LeaderElection:                cfg.LeaseNamespace != "",
		LeaderElectionNamespace:       cfg.LeaseNamespace,
		LeaderElectionID:              leaseName,
		LeaderElectionReleaseOnCancel: true,
		Controller:                    ctrlconfig.Controller{SkipNameValidation: &skip},
	}
}

// Add puts the controller into a manager that was made with Options.
func Add(mgr ctrl.Manager, cfg Config) error {
	if len(cfg.Namespaces) == 0 {
		return errNoNamespace
	}
	r, err := newReconciler(mgr.GetClient(), mgr.GetEventRecorder(controllerName), cfg)
	if err != nil {
		return err
	}
	err = ctrl.NewControllerManagedBy(mgr).
		Named(controllerName).
		For(newGroup()).
		WatchesMetadata(&corev1.ServiceAccount{}, handler.EnqueueRequestsFromMapFunc(r.groupsOf)).
		WithOptions(controller.Options{
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("heimdall controller: %w", err)
	}
	return nil
}

func newReconciler(c client.Client, recorder events.EventRecorder, cfg Config) (*reconciler, error) {
	m := cfg.Metrics
	if m == nil {
		var err error
		if m, err = NewMetrics(nil); err != nil {
			return nil, err
		}
	}
	return &reconciler{
		client: c, recorder: recorder, metrics: m, anyAccount: cfg.AnyAccount, now: time.Now,
		said: make(map[client.ObjectKey]string),
	}, nil
}

// groupsOf finds the groups that an account is of concern to.
func (r *reconciler) groupsOf(ctx context.Context, account client.Object) []reconcile.Request {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(GroupKind)
	if err := r.client.List(ctx, list, client.InNamespace(account.GetNamespace())); err != nil {
		return nil // the groups are looked at again in any case
	}
	var all []reconcile.Request
	for i := range list.Items {
		if g := &list.Items[i]; accountOf(g) == account.GetName() {
			all = append(all, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(g)})
		}
	}
	return all
}

// accountOf is the account that a group names; "": none.
func accountOf(g *unstructured.Unstructured) string {
	s, _, err := unstructured.NestedString(g.Object, "spec", "template", "serviceAccount")
	if err != nil {
		return ""
	}
	return s
}
