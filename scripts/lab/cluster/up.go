// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/scripts/lab/objects"
)

const (
	keyBits     = 2048
	filePrivate = 0o600
	// tokenLife is that of the tokens that up leaves for people.
	tokenLife = 24 * time.Hour
)

// Accounts are the service accounts of namespace external; up leaves a token
// for istiod of each, in [Lab.TokenFile].
var Accounts = []string{"test-http", "test-tcp", "test-grpc"}

// Up builds and starts what is not running, and waits until all is ready.
func (l *Lab) Up(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root, for network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "go", "nice"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("the lab needs %s: run scripts/setup.sh: %w", tool, err)
		}
	}
	for _, step := range []func(context.Context) error{
		l.Build, l.network, l.storage, l.kubernetes, l.istiods, l.apply, l.enrol, l.startPods, l.settle,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	l.say("up")
	return nil
}

func (l *Lab) storage(ctx context.Context) error {
	err := l.start(process{Name: Etcd, Netns: Node, Dir: l.run(), Args: []string{
		l.bins.etcd, "--data-dir", l.run("etcd"), "--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync",
	}})
	if err != nil {
		return err
	}
	return l.awaitReady(ctx, Etcd)
}

// kubernetes starts the API server: its keys, an administrator by token, and
// no admission that expects a controller-manager.
func (l *Lab) kubernetes(ctx context.Context) error {
	if err := l.writeKeys(); err != nil {
		return err
	}
	err := l.start(process{Name: APIServer, Netns: Node, Dir: l.run(), Args: []string{
		l.bins.apiServer, "--etcd-servers=" + etcdURL, "--cert-dir=" + l.run("certs"), "--secure-port=6443", "--bind-address=" + NodeAddress,
		"--service-cluster-ip-range=10.96.0.0/16", "--service-account-key-file=" + l.run("sa.pub"),
		"--service-account-signing-key-file=" + l.run("sa.key"), "--service-account-issuer=https://kubernetes.default.svc",
		"--token-auth-file=" + l.run("tokens.csv"), "--authorization-mode=RBAC", "--allow-privileged=true",
		"--disable-admission-plugins=ServiceAccount", "--enable-aggregator-routing=true",
	}})
	if err != nil {
		return err
	}
	if err := l.awaitReady(ctx, APIServer); err != nil {
		return err
	}
	l.say("kube-apiserver is ready")
	api, err := l.API()
	if err != nil {
		return err
	}
	crds, err := os.ReadFile(l.bins.crds)
	if err != nil {
		return err
	}
	if err := api.Apply(ctx, crds); err != nil {
		return fmt.Errorf("apply Istio's CRDs: %w", err)
	}
	return l.applyFiles(ctx, "namespaces.yaml")
}

// writeKeys makes what the API server needs to begin, once.
func (l *Lab) writeKeys() error {
	if exists(l.run("kubeconfig")) {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	token := rand.Text()
	for name, text := range map[string]string{
		"sa.key":      string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"sa.pub":      string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"admin-token": token,
		"tokens.csv":  token + `,admin,admin,"system:masters"` + "\n",
		"networks":    "networks: {}\n",
	} {
		if err := os.WriteFile(l.run(name), []byte(text), filePrivate); err != nil {
			return err
		}
	}
	return os.WriteFile(l.run("kubeconfig"), fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: lab, context: {cluster: lab, user: admin}}]
`, apiURL, l.run("certs", "apiserver.crt"), token), filePrivate)
}

// An istiod is one of the two; offset keeps their ports apart.
type istiod struct {
	name, mesh string
	offset     int
	env        []string
}

var istiods = []istiod{
	{IstiodMain, "mesh/default.yaml", 0, []string{"REVISION=default"}},
	{IstiodEnvoy, "mesh/envoy.yaml", 100, []string{"REVISION=envoy", "PILOT_ENABLE_ALPN_FILTER=false", "PILOT_ENABLE_METADATA_EXCHANGE=false"}},
}

// istiods starts both, one after the other: the first makes the CA that the
// second finds.
func (l *Lab) istiods(ctx context.Context) error {
	for _, i := range istiods {
		mesh, err := objects.Files.ReadFile(i.mesh)
		if err != nil {
			return err
		}
		config := l.run(i.name + ".yaml")
		if err := os.WriteFile(config, mesh, filePrivate); err != nil {
			return err
		}
		port := func(base int) string { return fmt.Sprintf(":%d", base+i.offset) }
		err = l.start(process{
			Name: i.name, Netns: Node, Dir: l.run(),
			Args: []string{
				l.bins.pilotDiscovery, "discovery", "--kubeconfig=" + l.run("kubeconfig"), "--meshConfig=" + config, "--networksConfig=" + l.run("networks"),
				"--httpAddr=" + port(8080), "--grpcAddr=" + port(15010), "--secureGRPCAddr=" + port(15012), "--httpsAddr=" + port(15017),
				"--monitoringAddr=" + port(15014), "--ctrlz_port=0", "--clusterRegistriesNamespace=istio-system",
			},
			Env: append([]string{
				"POD_NAME=" + i.name, "POD_NAMESPACE=istio-system", "CLUSTER_ID=Kubernetes", "INJECT_ENABLED=false",
				"PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION=true", "PILOT_ENABLE_AMBIENT=true", "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER=false",
			}, i.env...),
		})
		if err != nil {
			return err
		}
		if err := l.awaitReady(ctx, i.name); err != nil {
			return err
		}
		l.say("%s is ready", i.name)
	}
	return nil
}

func (l *Lab) apply(ctx context.Context) error { return l.applyFiles(ctx, objects.Order...) }

func (l *Lab) applyFiles(ctx context.Context, names ...string) error {
	api, err := l.API()
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := objects.Files.ReadFile(name)
		if err != nil {
			return err
		}
		if err := api.Apply(ctx, text); err != nil {
			return fmt.Errorf("apply %s: %w", name, err)
		}
	}
	return nil
}

// RootFile holds the mesh's root certificate, for the laptop.
func (l *Lab) RootFile() string { return l.run("root-cert.pem") }

// TokenFile holds a token for istiod of an account of namespace external.
func (l *Lab) TokenFile(account string) string { return l.run("token-" + account) }

// enrol leaves for people what a laptop needs to join.
func (l *Lab) enrol(ctx context.Context) error {
	api, err := l.API()
	if err != nil {
		return err
	}
	err = Poll(ctx, readyLimit, "the root certificate", func(ctx context.Context) error {
		o, err := api.Get(ctx, "/api/v1/namespaces/external/configmaps/istio-ca-root-cert")
		if err != nil {
			return err
		}
		data, _ := o["data"].(map[string]any)
		root, _ := data["root-cert.pem"].(string)
		if root == "" {
			return errors.New("the ConfigMap is empty")
		}
		return os.WriteFile(l.RootFile(), []byte(root), 0o644)
	})
	if err != nil {
		return err
	}
	for _, account := range Accounts {
		token, err := api.Token(ctx, "external", account, "istio-ca", tokenLife)
		if err != nil {
			return err
		}
		if err := os.WriteFile(l.TokenFile(account), []byte(token), filePrivate); err != nil {
			return err
		}
	}
	return nil
}

// Usage is how the lab is used.
func (l *Lab) Usage() string {
	bin := filepath.Join(l.root, "bin", "nasp-tun")
	join := strings.Join(append([]string{bin, "exec"}, l.JoinFlags("test-http")...), " \\\n      ")
	return fmt.Sprintf(`
The laptop reaches %[1]s and nothing else. An unmodified program in the mesh:

  ip netns exec %[2]s %[3]s \
      -- curl -sS http://echo.testing

Accounts of namespace external: %[4]s; put one for the other.
From any terminal, while such a session runs:   %[5]s status
The cluster:   ip netns exec %[6]s kubectl --kubeconfig %[7]s get pods -A
istiod's view: ip netns exec %[6]s curl -s 127.0.0.1:8080/debug/syncz
Logs:          %[8]s
The end:       make lab-down
`, GatewayAddress, Laptop, join, strings.Join(Accounts, ", "), bin, Node, l.run("kubeconfig"), l.cache("log"))
}

// JoinFlags are the flags with which nasp-tun joins as an account of
// namespace external.
func (l *Lab) JoinFlags(account string) []string {
	return []string{
		"--istiod=" + Istiod, "--istiod-server-name=" + IstiodName, "--istiod-ca=" + l.RootFile(), "--istio-token-file=" + l.TokenFile(account),
		"--namespace=external", "--service-account=" + account, "--network=network2",
	}
}
