// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// istioctlEnv is cluster.env as istioctl 1.31 writes it with --autoregister.
const istioctlEnv = `CANONICAL_REVISION='latest'
CANONICAL_SERVICE='laptop'
ISTIO_INBOUND_PORTS='*'
ISTIO_LOCAL_EXCLUDE_PORTS='22,15090,15021,15020'
ISTIO_METAJSON_LABELS='{"app":"laptop","note":"it'"'"'s","service.istio.io/canonical-name":"laptop"}'
ISTIO_META_AUTO_REGISTER_GROUP='laptop'
ISTIO_META_CLUSTER_ID='Kubernetes'
ISTIO_META_DNS_CAPTURE='true'
ISTIO_META_MESH_ID='mesh1'
ISTIO_META_NETWORK='network2'
ISTIO_META_WORKLOAD_NAME='laptop'
ISTIO_NAMESPACE='external'
ISTIO_SERVICE='laptop.external'
ISTIO_SERVICE_CIDR='*'
ISTIO_SVC_IP='192.0.2.7'
POD_NAMESPACE='external'
SERVICE_ACCOUNT='test-http'
TRUST_DOMAIN='cluster.local'
`

// writeBundle writes what istioctl writes; change overrides files by name, an
// empty text removes one.
func writeBundle(t *testing.T, change map[string]string) string {
	t.Helper()
	files := map[string]string{
		bundleEnv:   istioctlEnv,
		bundleMesh:  "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n  proxyMetadata:\n    ISTIO_META_NETWORK: network2\n",
		bundleHosts: "172.30.0.10 istiod.istio-system.svc\n",
		bundleRoots: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
		bundleToken: "a-token\n",
	}
	for name, text := range change {
		files[name] = text
	}
	dir := t.TempDir()
	for name, text := range files {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBundleOfIstioctl(t *testing.T) {
	s, err := bundleEnrolment(&EnrolConfig{Bundle: writeBundle(t, nil)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := []string{
		e.IstiodAddress, e.IstiodServerName, e.ClusterID, e.MeshID, e.Network, e.Namespace, e.ServiceAccount,
		e.WorkloadName, e.AutoRegisterGroup, e.TrustDomain, e.InstanceIPs[0].String(), e.Token.Reveal(), e.Labels["note"],
	}
	want := []string{
		"172.30.0.10:15012", "istiod.istio-system.svc", "Kubernetes", "mesh1", "network2", "external", "test-http",
		"laptop", "laptop", "cluster.local", "192.0.2.7", "a-token", "it's",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the enrolment differs (-want +got):\n%s", diff)
	}
}

func TestBundleRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change map[string]string
		want   string
	}{
		{"no environment", map[string]string{bundleEnv: ""}, "cluster.env"},
		{"a line that is none", map[string]string{bundleEnv: "POD_NAMESPACE='a'\nnonsense\n"}, "cluster.env:2"},
		{"an open quote", map[string]string{bundleEnv: "POD_NAMESPACE='a\n"}, "cluster.env:1"},
		{"no namespace", map[string]string{bundleEnv: "A=b\n"}, "POD_NAMESPACE"},
		{"labels that are no JSON", map[string]string{bundleEnv: "POD_NAMESPACE=a\nISTIO_METAJSON_LABELS='{'\n"}, "ISTIO_METAJSON_LABELS"},
		{"no gateway", map[string]string{bundleHosts: "\n"}, "no address for istiod.istio-system.svc"},
		{"no mesh file", map[string]string{bundleMesh: ""}, "mesh.yaml"},
		{"a mesh file that is no YAML", map[string]string{bundleMesh: "\t:"}, "mesh.yaml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bundleEnrolment(&EnrolConfig{Bundle: writeBundle(t, tt.change)}, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// The files are all that a laptop needs.
func TestExecByBundle(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	addr := l.mesh.IstiodAddr()
	dir := writeBundle(t, map[string]string{
		bundleMesh:  "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:" + strconv.Itoa(int(addr.Port())) + "\n",
		bundleHosts: addr.Addr().String() + " istiod.istio-system.svc\n",
		bundleRoots: string(l.mesh.RootPEM()),
		bundleToken: l.mesh.MintToken("test-http", "external"),
	})
	finish(t, l.naspTun(t, "exec", "--bundle", dir, "--", "curl", "-sS", "http://echo.testing")).want(t, 0, "URI="+demoIdentity)
}
