// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// Names that Istio fixes.
const (
	defaultRevision = "default"
	revisionLabel   = "istio.io/rev"
	networkLabel    = "topology.istio.io/network"
	rootConfigMap   = "istio-ca-root-cert"
	rootKey         = "root-cert.pem"
	// istiodPort is that of istiod's TLS, at istiod and at a gateway that
	// passes it through.
	istiodPort = 15012
	// What istiod takes where nothing is configured.
	defaultClusterID   = "Kubernetes"
	defaultDomain      = "cluster.local"
	defaultTrustDomain = "cluster.local"
)

var (
	// ErrNoIstiod is a cluster without an istiod of the revision.
	ErrNoIstiod = errors.New("no istiod of this revision")
	// ErrNoGateway is a cluster that cannot be entered: no gateway passes
	// istiod through, or its load balancer has no address yet.
	ErrNoGateway = errors.New("no east-west gateway with an address and port 15012")
)

// A Mesh is what all workloads of a mesh are told alike.
type Mesh struct {
	Addresses    []string // host:port at which istiod is reached; at least one
	ServerName   string   // of istiod's certificate
	Roots        []byte   // PEM
	Revision     string
	ClusterID    string
	MeshID       string
	TrustDomain  string
	DNSDomain    string // of the cluster
	Network      string // of the cluster; "": it has no name
	IstioVersion string // "": not known
}

// Mesh reads what is known of the mesh, or returns what was read a few seconds
// ago.
func (c *Client) Mesh(ctx context.Context) (Mesh, error) {
	select {
	case c.reading <- struct{}{}:
		defer func() { <-c.reading }()
	case <-ctx.Done():
		return Mesh{}, ctx.Err()
	}
	if c.facts != nil && c.cfg.Now().Sub(c.read) < c.cfg.FactsAge {
		return *c.facts, nil
	}
	m, err := c.readMesh(ctx)
	if err != nil {
		return Mesh{}, err
	}
	c.facts, c.read = &m, c.cfg.Now()
	return m, nil
}

func (c *Client) readMesh(ctx context.Context) (Mesh, error) {
	m := Mesh{Revision: c.cfg.Revision}
	var ns struct{ Metadata meta }
	if err := c.get(ctx, path("api", "v1", "namespaces", c.cfg.IstioNamespace), nil, &ns); err != nil {
		return m, fmt.Errorf("read the mesh's network: %w", err)
	}
	m.Network = ns.Metadata.Labels[networkLabel]
	for _, step := range []func(context.Context, *Mesh) error{c.readIstiod, c.readRoots, c.readMeshConfig, c.readInjector, c.readGateway} {
		if err := step(ctx, &m); err != nil {
			return m, err
		}
	}
	return m, nil
}

type meta struct {
	Name        string
	Namespace   string
	UID         string
	Labels      map[string]string
	Annotations map[string]string
}

// A service is the part of a Service that tells where it is reached.
type service struct {
	Metadata meta
	Spec     struct {
		ExternalIPs []string
		Ports       []struct{ Port int }
	}
	Status struct {
		LoadBalancer struct {
			Ingress []struct{ IP, Hostname string }
		}
	}
}

func (s *service) hasPort(n int) bool {
	for _, p := range s.Spec.Ports {
		if p.Port == n {
			return true
		}
	}
	return false
}

// addresses are those at which istiod, too, says that the gateway is
// (istio.io/istio, pilot/pkg/serviceregistry/kube/conversion.go).
func (s *service) addresses() []string {
	all := append([]string(nil), s.Spec.ExternalIPs...)
	for _, in := range s.Status.LoadBalancer.Ingress {
		if a := either(in.IP, in.Hostname); a != "" {
			all = append(all, a)
		}
	}
	return all
}

func (c *Client) services(ctx context.Context, namespace, selector string) ([]service, error) {
	var list struct{ Items []service }
	err := c.get(ctx, path("api", "v1", "namespaces", namespace, "services"), url.Values{"labelSelector": {selector}}, &list)
	return list.Items, err
}

// readIstiod finds istiod's Service: its name is in istiod's certificate.
func (c *Client) readIstiod(ctx context.Context, m *Mesh) error {
	selector := "app=istiod," + revisionLabel + "=" + c.cfg.Revision
	found, err := c.services(ctx, c.cfg.IstioNamespace, selector)
	if err != nil {
		return fmt.Errorf("find istiod: %w", err)
	}
	if len(found) == 0 {
		return fmt.Errorf("find istiod: %w: no Service labelled %s in namespace %s", ErrNoIstiod, selector, c.cfg.IstioNamespace)
	}
	m.ServerName = found[0].Metadata.Name + "." + c.cfg.IstioNamespace + ".svc"
	return nil
}

// readGateway finds where istiod is reached from outside. With several
// networks in one cluster, the gateways of the cluster's own come first.
func (c *Client) readGateway(ctx context.Context, m *Mesh) error {
	if c.cfg.Address != "" {
		m.Addresses = []string{c.cfg.Address}
		return nil
	}
	found, err := c.services(ctx, c.cfg.GatewayNamespace, c.cfg.GatewaySelector)
	if err != nil {
		return fmt.Errorf("find the east-west gateway: %w", err)
	}
	var own, others []string
	for _, s := range found {
		if !s.hasPort(istiodPort) {
			continue
		}
		for _, a := range s.addresses() {
			a = net.JoinHostPort(a, strconv.Itoa(istiodPort))
			if s.Metadata.Labels[networkLabel] == m.Network {
				own = append(own, a)
			} else {
				others = append(others, a)
			}
		}
	}
	if m.Addresses = append(own, others...); len(m.Addresses) == 0 {
		return fmt.Errorf("find the east-west gateway: %w: of %d Services labelled %s in namespace %s",
			ErrNoGateway, len(found), c.cfg.GatewaySelector, c.cfg.GatewayNamespace)
	}
	return nil
}

type configMap struct{ Data map[string]string }

func (c *Client) configMap(ctx context.Context, name string) (configMap, error) {
	var m configMap
	err := c.get(ctx, path("api", "v1", "namespaces", c.cfg.IstioNamespace, "configmaps", name), nil, &m)
	return m, err
}

// revised is the name of an object of istiod's revision.
func (c *Client) revised(name string) string {
	if c.cfg.Revision == defaultRevision {
		return name
	}
	return name + "-" + c.cfg.Revision
}

func (c *Client) readRoots(ctx context.Context, m *Mesh) error {
	roots, err := c.configMap(ctx, rootConfigMap)
	if err != nil {
		return fmt.Errorf("read the roots of the mesh: %w", err)
	}
	m.Roots = []byte(roots.Data[rootKey])
	return nil
}

// readMeshConfig reads what the workloads must know of the mesh's
// configuration. An installation without the ConfigMap has istiod's defaults.
func (c *Client) readMeshConfig(ctx context.Context, m *Mesh) error {
	name := c.revised("istio")
	cm, err := c.configMap(ctx, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("read the mesh's configuration: %w", err)
	}
	var mesh struct {
		TrustDomain   string `yaml:"trustDomain"`
		DefaultConfig struct {
			MeshID string `yaml:"meshId"`
		} `yaml:"defaultConfig"`
	}
	if err := yaml.Unmarshal([]byte(cm.Data["mesh"]), &mesh); err != nil {
		return fmt.Errorf("read ConfigMap %s: %w", name, err)
	}
	m.TrustDomain = either(mesh.TrustDomain, defaultTrustDomain)
	// A mesh without an ID is called by its trust domain, as Istio's injector
	// does.
	m.MeshID = either(mesh.DefaultConfig.MeshID, m.TrustDomain)
	return nil
}

// readInjector reads what only Istio's injector is told. istiod works without
// an injector, and then has its defaults.
func (c *Client) readInjector(ctx context.Context, m *Mesh) error {
	name := c.revised("istio-sidecar-injector")
	cm, err := c.configMap(ctx, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("read the injector's configuration: %w", err)
	}
	var values struct {
		Global struct {
			Tag          any // a version, if it is not a number or a nightly build
			MultiCluster struct{ ClusterName string }
			Proxy        struct{ ClusterDomain string }
		}
	}
	if text := cm.Data["values"]; text != "" {
		if err := json.Unmarshal([]byte(text), &values); err != nil {
			return fmt.Errorf("read ConfigMap %s: %w", name, err)
		}
	}
	m.ClusterID = either(c.cfg.ClusterID, either(values.Global.MultiCluster.ClusterName, defaultClusterID))
	m.DNSDomain = either(values.Global.Proxy.ClusterDomain, defaultDomain)
	if tag, ok := values.Global.Tag.(string); ok {
		m.IstioVersion = version(tag)
	}
	return nil
}

// version returns MAJOR.MINOR.PATCH of an image tag such as 1.28.1-distroless;
// "": it is not a version.
func version(tag string) string {
	end, dots := 0, 0
	for end < len(tag) && (tag[end] >= '0' && tag[end] <= '9' || tag[end] == '.') {
		if tag[end] == '.' {
			dots++
		}
		end++
	}
	if dots != 2 || tag[0] == '.' || tag[end-1] == '.' || end < len(tag) && tag[end] != '-' {
		return ""
	}
	return tag[:end]
}
