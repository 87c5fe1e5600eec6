// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/nasp-tun/nasp-tun/heimdall"
)

// The files that `istioctl x workload entry configure` writes for a virtual
// machine, by the names that it gives them.
const (
	bundleEnv   = "cluster.env"   // KEY=VALUE, quoted for a shell
	bundleMesh  = "mesh.yaml"     // the proxy's configuration
	bundleHosts = "hosts"         // where istiod is, as in /etc/hosts
	bundleRoots = "root-cert.pem" // of the mesh
	bundleToken = "istio-token"   // for the audience istio-ca
)

// A bundleSource is the enrolment by such a folder. The token and the roots
// are read again whenever they are needed, so that both may be replaced.
type bundleSource struct {
	flagSource
	labels map[string]string
	group  string // the WorkloadGroup, if istiod is to register us
	domain string // of trust
}

func bundleEnrolment(cfg *EnrolConfig, dial dialFunc) (enrolment, error) {
	dir := os.DirFS(cfg.Bundle)
	env, err := readBundleEnv(dir)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", cfg.Bundle, err)
	}
	istiod, name, err := bundleIstiod(dir, env)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", cfg.Bundle, err)
	}
	s := &bundleSource{group: env["ISTIO_META_AUTO_REGISTER_GROUP"], domain: env["TRUST_DOMAIN"]}
	if text := env["ISTIO_METAJSON_LABELS"]; text != "" {
		if err := json.Unmarshal([]byte(text), &s.labels); err != nil {
			return nil, configErrorf("bundle %s: %s: ISTIO_METAJSON_LABELS: %w", cfg.Bundle, bundleEnv, err)
		}
	}
	c := &EnrolConfig{
		Istiod: istiod, IstiodServerName: name,
		IstiodCA: filepath.Join(cfg.Bundle, bundleRoots), IstioTokenFile: filepath.Join(cfg.Bundle, bundleToken),
		ClusterID: cmp.Or(env["ISTIO_META_CLUSTER_ID"], "Kubernetes"), MeshID: env["ISTIO_META_MESH_ID"],
		Network: env["ISTIO_META_NETWORK"], Workload: env["ISTIO_META_WORKLOAD_NAME"],
		Namespace:      cmp.Or(env["POD_NAMESPACE"], env["ISTIO_NAMESPACE"]),
		ServiceAccount: cmp.Or(env["SERVICE_ACCOUNT"], "default"),
		InstanceIPs:    cfg.InstanceIPs,
	}
	if own, err := netip.ParseAddr(env["ISTIO_SVC_IP"]); err == nil && len(c.InstanceIPs) == 0 {
		c.InstanceIPs = []netip.Addr{own}
	}
	if c.Namespace == "" {
		return nil, configErrorf("bundle %s: %s names no namespace (POD_NAMESPACE)", cfg.Bundle, bundleEnv)
	}
	s.flagSource = flagSource{cfg: c, dial: dial, token: func() (heimdall.Secret, error) {
		return heimdall.ReadToken(c.IstioTokenFile)
	}}
	return s, nil
}

// Enroll implements enrolment.
func (s *bundleSource) Enroll(ctx context.Context) (heimdall.Enrollment, error) {
	e, err := s.flagSource.Enroll(ctx)
	e.Labels, e.AutoRegisterGroup, e.TrustDomain = s.labels, s.group, s.domain
	return e, err
}

// bundleIstiod returns where istiod is dialled, and the name that its
// certificate must have: the mesh's own name for it, whose address is that of
// a gateway in the file hosts.
func bundleIstiod(dir fs.FS, env map[string]string) (address, name string, err error) {
	text, err := fs.ReadFile(dir, bundleMesh)
	if err != nil {
		return "", "", err
	}
	var mesh struct {
		DefaultConfig struct {
			DiscoveryAddress string `yaml:"discoveryAddress"`
		} `yaml:"defaultConfig"`
	}
	if err := yaml.Unmarshal(text, &mesh); err != nil {
		return "", "", configErrorf("%s: %w", bundleMesh, err)
	}
	address = cmp.Or(mesh.DefaultConfig.DiscoveryAddress, env["CA_ADDR"], "istiod.istio-system.svc:15012")
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", configErrorf("%s: discoveryAddress: %w", bundleMesh, err)
	}
	hosts, err := fs.ReadFile(dir, bundleHosts)
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(hosts)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[1] == name {
			return net.JoinHostPort(f[0], port), name, nil
		}
	}
	// istioctl leaves the file empty where it found no gateway.
	return "", "", configErrorf("%s: no address for %s: write the gateway's there (istioctl --ingressIP)", bundleHosts, name)
}

// readBundleEnv reads the lines KEY=VALUE as a shell would.
func readBundleEnv(dir fs.FS) (map[string]string, error) {
	text, err := fs.ReadFile(dir, bundleEnv)
	if err != nil {
		return nil, err
	}
	env := make(map[string]string)
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, configErrorf("%s:%d: no KEY=VALUE", bundleEnv, n)
		}
		if env[key], ok = unquote(value); !ok {
			return nil, configErrorf("%s:%d: %s: a quote that does not end", bundleEnv, n, key)
		}
	}
	return env, nil
}

// unquote takes off a shell's quotes. istioctl uses single ones, and puts a
// single quote within a value in double ones ('"'"').
func unquote(s string) (string, bool) {
	var b strings.Builder
	for s != "" {
		q := s[0]
		if q != '\'' && q != '"' {
			b.WriteByte(q)
			s = s[1:]
			continue
		}
		inside, rest, ok := strings.Cut(s[1:], string(q))
		if !ok {
			return "", false
		}
		b.WriteString(inside)
		s = rest
	}
	return b.String(), true
}
