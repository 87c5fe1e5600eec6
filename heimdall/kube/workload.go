// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/nasp-tun/nasp-tun/heimdall"
)

// Labels and annotations of WorkloadGroups and accounts that Heimdall knows.
const (
	// MonitoringLabel, "true", lets a WorkloadGroup have an access token.
	MonitoringLabel = "nasp.k8s.cisco.com/monitoring"
	// AllowedAnnotation, "true", lets Heimdall mint tokens of an account.
	AllowedAnnotation = "heimdall.nasp.k8s.cisco.com/allowed"
	// LifeAnnotation is the life of a group's access tokens, a Go duration.
	LifeAnnotation = "heimdall.nasp.k8s.cisco.com/token-expiration-duration"
	// DefaultTokenLife is that of access tokens without the annotation.
	DefaultTokenLife = 24 * time.Hour
	// MaxTokenLife bounds the annotation. A token cannot be revoked other than
	// by the label, the annotation or the end of its account.
	MaxTokenLife = 365 * 24 * time.Hour
)

// Audience is that of the access tokens of a WorkloadGroup.
func Audience(namespace, group string) string {
	return "nasp-heimdall:workloadgroup:" + namespace + ":" + group
}

// TokenLife is the life of a group's access tokens by its annotation. The
// error says why the life is not the one that the annotation names.
func TokenLife(annotation string) (time.Duration, error) {
	if annotation == "" {
		return DefaultTokenLife, nil
	}
	d, err := time.ParseDuration(annotation)
	switch {
	case err != nil:
		return DefaultTokenLife, fmt.Errorf("annotation %s: %w: %s is used", LifeAnnotation, err, DefaultTokenLife)
	case d < MinTokenLife:
		return MinTokenLife, fmt.Errorf("annotation %s: %s is below the API server's least: %s is used", LifeAnnotation, d, MinTokenLife)
	case d > MaxTokenLife:
		return MaxTokenLife, fmt.Errorf("annotation %s: %s is above the most: %s is used", LifeAnnotation, d, MaxTokenLife)
	}
	return d, nil
}

// A Group is a WorkloadGroup: what a workload outside the cluster is to the
// mesh.
type Group struct {
	Namespace, Name string
	ServiceAccount  string // "": the group names none
	Network         string // "": that of the cluster
	Labels          map[string]string
	Monitored       bool // bears MonitoringLabel
	Life            time.Duration
}

// Group reads a WorkloadGroup. The version is one that every Istio of this
// decade serves.
func (c *Client) Group(ctx context.Context, namespace, name string) (Group, error) {
	var o struct {
		Metadata meta
		Spec     struct {
			Metadata struct{ Labels map[string]string }
			Template struct {
				ServiceAccount, Network string
				Labels                  map[string]string
			}
		}
	}
	err := c.get(ctx, path("apis", "networking.istio.io", "v1beta1", "namespaces", namespace, "workloadgroups", name), nil, &o)
	if err != nil {
		return Group{}, fmt.Errorf("read WorkloadGroup %s/%s: %w", namespace, name, err)
	}
	// As istiod does for the group's entries: the metadata over the template.
	labels := maps.Clone(o.Spec.Template.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	maps.Copy(labels, o.Spec.Metadata.Labels)
	// The controller tells what is wrong with the annotation.
	life, _ := TokenLife(o.Metadata.Annotations[LifeAnnotation])
	return Group{
		Namespace: namespace, Name: name,
		ServiceAccount: o.Spec.Template.ServiceAccount, Network: o.Spec.Template.Network,
		Labels: labels, Monitored: o.Metadata.Labels[MonitoringLabel] == "true", Life: life,
	}, nil
}

// Allowed reports whether Heimdall may mint tokens of an account. An account
// that does not exist is ErrNotFound.
func (c *Client) Allowed(ctx context.Context, a Account) (bool, error) {
	var o struct{ Metadata meta }
	if err := c.get(ctx, path("api", "v1", "namespaces", a.Namespace, "serviceaccounts", a.Name), nil, &o); err != nil {
		return false, fmt.Errorf("read ServiceAccount %s/%s: %w", a.Namespace, a.Name, err)
	}
	return o.Metadata.Annotations[AllowedAnnotation] == "true", nil
}

// A Workload asks to join the mesh.
type Workload struct {
	Namespace, ServiceAccount string
	// Group is the WorkloadGroup that it becomes an entry of; "": none.
	Group string
	// Name is that of the workload; "": the group's, or the account's.
	Name    string
	Network string // "": that of the cluster
	Labels  map[string]string
}

// Workload is what an entry of the group is.
func (g Group) Workload() Workload {
	return Workload{
		Namespace: g.Namespace, ServiceAccount: g.ServiceAccount, Group: g.Name, Name: g.Name,
		Network: g.Network, Labels: g.Labels,
	}
}

// Enroll mints a token for istiod and tells all that is needed to use it.
func (c *Client) Enroll(ctx context.Context, w Workload) (heimdall.Enrollment, error) {
	m, err := c.Mesh(ctx)
	if err != nil {
		return heimdall.Enrollment{}, err
	}
	account := either(w.ServiceAccount, "default")
	token, expiry, err := c.Mint(ctx, w.Namespace, account, IstioAudience, IstioTokenLife)
	if err != nil {
		return heimdall.Enrollment{}, err
	}
	name := either(w.Name, either(w.Group, account))
	network := either(w.Network, m.Network)
	return heimdall.Enrollment{
		IstiodAddress: m.Addresses[0], OtherAddresses: m.Addresses[1:], IstiodServerName: m.ServerName,
		Roots: m.Roots, Token: token, TokenExpiry: expiry,
		ClusterID: m.ClusterID, MeshID: m.MeshID, TrustDomain: m.TrustDomain, Revision: m.Revision, IstioVersion: m.IstioVersion,
		Namespace: w.Namespace, ServiceAccount: account, WorkloadName: name, Owner: owner(w, name),
		Labels: labels(w.Labels, name, network, m.Revision), Network: network, AutoRegisterGroup: w.Group,
		DNSDomain: m.DNSDomain, SearchDomains: []string{"svc." + m.DNSDomain, m.DNSDomain},
	}, nil
}

// owner is the workload's in Istio's telemetry.
func owner(w Workload, name string) string {
	kind := "workloads"
	if w.Group != "" {
		kind = "workloadgroups"
	}
	return "kubernetes://apis/v1/namespaces/" + w.Namespace + "/" + kind + "/" + name
}

// labels completes a workload's labels with those that Istio's injector would
// give it.
func labels(own map[string]string, name, network, revision string) map[string]string {
	all := map[string]string{
		"app":                                 name,
		"security.istio.io/tlsMode":           "istio",
		"istio.io/rev":                        revision,
		"service.istio.io/canonical-name":     either(own["app.kubernetes.io/name"], either(own["app"], name)),
		"service.istio.io/canonical-revision": either(own["app.kubernetes.io/version"], either(own["version"], "latest")),
	}
	if network != "" {
		all[networkLabel] = network
	}
	maps.Copy(all, own)
	return all
}

// SecretData reads what is in a Secret.
func (c *Client) SecretData(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	var o struct{ Data map[string][]byte }
	if err := c.get(ctx, path("api", "v1", "namespaces", namespace, "secrets", name), nil, &o); err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
	}
	return o.Data, nil
}
