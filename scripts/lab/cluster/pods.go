// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// startPods starts the Envoys of the pods by Istio's own agent, and the
// applications behind them.
func (l *Lab) startPods(ctx context.Context) error {
	for _, p := range pods {
		if p.app != "" {
			if err := l.start(process{Name: p.app, Netns: p.netns, Dir: l.run(), Args: []string{l.bins.echo, "-name", p.name}}); err != nil {
				return err
			}
		}
		if old := l.process(p.agent); old != nil && old.running() {
			continue
		}
		dir, err := l.podDir(ctx, p)
		if err != nil {
			return err
		}
		agent, err := l.agent(p, dir)
		if err != nil {
			return err
		}
		if err := l.start(agent); err != nil {
			return err
		}
	}
	for _, p := range pods {
		if err := l.awaitReady(ctx, p.agent); err != nil {
			return err
		}
		l.say("Envoy of %s is ready", p.name)
	}
	return nil
}

// podDir makes the files that a pod finds mounted. The agent looks for them
// below its working directory.
func (l *Lab) podDir(ctx context.Context, p pod) (string, error) {
	api, err := l.API()
	if err != nil {
		return "", err
	}
	token, err := api.Token(ctx, p.namespace, p.account, "istio-ca", tokenLife)
	if err != nil {
		return "", err
	}
	root, err := os.ReadFile(l.RootFile())
	if err != nil {
		return "", err
	}
	bootstrap, err := os.ReadFile(l.bins.bootstrap)
	if err != nil {
		return "", err
	}
	dir := l.run("pod-" + p.name)
	for name, content := range map[string]string{
		"var/run/secrets/tokens/istio-token":   token,
		"var/run/secrets/istio/root-cert.pem":  string(root),
		"etc/istio/pod/labels":                 strings.Join(p.labels, "\n") + "\n",
		"etc/istio/pod/annotations":            "",
		"etc/istio/proxy/envoy_bootstrap.json": string(bootstrap),
		"var/lib/istio/data/.keep":             "",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(name, []byte(content), filePrivate); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// agent is the process that makes an Envoy of a pod what istiod says.
func (l *Lab) agent(p pod, dir string) (process, error) {
	config, err := json.Marshal(map[string]any{
		"discoveryAddress":           envoyIstiod,
		"binaryPath":                 l.bins.envoy,
		"proxyBootstrapTemplatePath": filepath.Join(dir, "etc/istio/proxy/envoy_bootstrap.json"),
		"configPath":                 filepath.Join(dir, "etc/istio/proxy"),
		"concurrency":                1,
	})
	if err != nil {
		return process{}, err
	}
	role := "sidecar"
	env := []string{
		"POD_NAME=" + p.name, "POD_NAMESPACE=" + p.namespace, "INSTANCE_IP=" + p.address, "SERVICE_ACCOUNT=" + p.account, "HOST_IP=" + NodeAddress,
		"PILOT_CERT_PROVIDER=istiod", "CA_ADDR=" + envoyIstiod, "TRUST_DOMAIN=cluster.local", "PROXY_CONFIG=" + string(config),
		"ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_NETWORK=network1", "ISTIO_META_WORKLOAD_NAME=" + p.name,
		"ISTIO_META_MESH_ID=cluster.local", "ISTIO_META_INTERCEPTION_MODE=REDIRECT", "ISTIO_META_UNPRIVILEGED_POD=true",
	}
	if p.gateway {
		role = "router"
		env = append(env, "ISTIO_META_ROUTER_MODE=sni-dnat", "ISTIO_META_REQUESTED_NETWORK_VIEW=network1")
	}
	return process{
		Name: p.agent, Netns: p.netns, Dir: dir, Env: env,
		Args: []string{l.bins.pilotAgent, "proxy", role, "--domain", p.namespace + ".svc.cluster.local", "--proxyLogLevel=warning", "--log_output_level=default:info"},
	}, nil
}
