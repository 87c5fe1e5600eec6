// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// sayEvery is how often a long build says that it goes on.
const sayEvery = 30 * time.Second

// binaries are the programs and files that the lab runs.
type binaries struct {
	etcd, apiServer, pilotDiscovery, pilotAgent, envoy, echo string
	crds, bootstrap                                          string // of the istio module
}

// A program is one that is built from a module that scripts/lab/build pins.
type program struct {
	module  string // folder below scripts/lab/build
	path    string // of the module, whose version becomes part of the file's name
	pkg     string
	ldflags string // VERSION stands for the module's version
}

var (
	kubeAPIServer  = program{"kube", "k8s.io/kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", "-s -w -X k8s.io/component-base/version.gitVersion=VERSION"}
	pilotDiscovery = program{"istio", "istio.io/istio", "istio.io/istio/pilot/cmd/pilot-discovery", "-s -w"}
	pilotAgent     = program{"istio", "istio.io/istio", "istio.io/istio/pilot/cmd/pilot-agent", "-s -w"}
)

// Build makes the programs that are not in the cache.
func (l *Lab) Build(ctx context.Context) error {
	var err error
	get := func(into *string, f func(context.Context) (string, error)) {
		if err == nil {
			*into, err = f(ctx)
		}
	}
	build := func(p program) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) { return l.build(ctx, p) }
	}
	get(&l.bins.echo, l.buildEcho)
	get(&l.bins.envoy, l.findEnvoy)
	get(&l.bins.etcd, l.fetchEtcd)
	get(&l.bins.pilotDiscovery, build(pilotDiscovery))
	get(&l.bins.pilotAgent, build(pilotAgent))
	get(&l.bins.apiServer, build(kubeAPIServer))
	get(&l.bins.crds, func(ctx context.Context) (string, error) {
		return l.istioFile(ctx, "manifests/charts/base/files/crd-all.gen.yaml")
	})
	get(&l.bins.bootstrap, func(ctx context.Context) (string, error) {
		return l.istioFile(ctx, "tools/packaging/common/envoy_bootstrap.json")
	})
	return err
}

func (l *Lab) buildDir(module string) string {
	return filepath.Join(l.root, "scripts", "lab", "build", module)
}

// version is the version of a pinned module.
func (l *Lab) version(p program) (string, error) {
	b, err := os.ReadFile(filepath.Join(l.buildDir(p.module), "go.mod"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require ")); len(f) >= 2 && f[0] == p.path {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("%s/go.mod: no version of %s", l.buildDir(p.module), p.path)
}

// cached names a file of the cache by the version and by all that it was
// built from.
func (l *Lab) cached(p program, name string) (string, error) {
	version, err := l.version(p)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(l.buildDir(p.module), f))
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	return l.cache("bin", name+"-"+version+"-"+hex.EncodeToString(h.Sum(nil))[:8]), nil
}

func (l *Lab) build(ctx context.Context, p program) (string, error) {
	bin, err := l.cached(p, filepath.Base(p.pkg))
	if err != nil || exists(bin) {
		return bin, err
	}
	version, err := l.version(p)
	if err != nil {
		return "", err
	}
	what := fmt.Sprintf("building %s %s", filepath.Base(p.pkg), version)
	err = l.slowly(ctx, what, bin, func(ctx context.Context, tmp string) *exec.Cmd {
		// Two at a time and behind all else: these are long builds, and the
		// compiler of the largest packages takes more than a gigabyte.
		cmd := exec.CommandContext(ctx, "nice", "-n", "19", "go", "build", "-p", "2", "-trimpath", "-buildvcs=false",
			"-ldflags", strings.ReplaceAll(p.ldflags, "VERSION", version), "-o", tmp, p.pkg)
		cmd.Dir = l.buildDir(p.module)
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly")
		return cmd
	})
	if err != nil {
		return "", err
	}
	return bin, l.forget(filepath.Base(p.pkg), bin)
}

// forget removes the builds of a program but one; each takes 100 MB.
func (l *Lab) forget(name, keep string) error {
	all, err := filepath.Glob(l.cache("bin", name+"-v*"))
	if err != nil {
		return err
	}
	for _, old := range all {
		if old == keep {
			continue
		}
		if err := os.Remove(old); err != nil {
			return err
		}
	}
	return nil
}

// slowly runs a command that makes a file, and says that it goes on. The file
// is there only when it is whole.
func (l *Lab) slowly(ctx context.Context, what, file string, prepare func(ctx context.Context, tmp string) *exec.Cmd) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	l.say("%s", what)
	tmp := file + ".new"
	cmd := prepare(ctx, tmp)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }() //rule:allow ends with the command, which ctx ends
	t := time.NewTicker(sayEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			l.say("%s: going on", what)
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", what, err, out.String())
			}
			return os.Rename(tmp, file)
		}
	}
}

// EchoProgram is the application of the pods, for tests that want another.
func (l *Lab) EchoProgram() string { return l.cache("bin", "echo") }

// buildEcho builds the application of the pods from this checkout. Go's own
// cache makes that quick.
func (l *Lab) buildEcho(ctx context.Context) (string, error) {
	bin := l.EchoProgram()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "./scripts/echo")
	cmd.Dir = l.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build echo: %w: %s", err, out)
	}
	return bin, nil
}

// findEnvoy finds the binary that setup.sh has installed. The script of that
// name would stay between the agent and its Envoy.
func (l *Lab) findEnvoy(context.Context) (string, error) {
	dir := filepath.Join(l.root, ".cache", "envoy")
	found, err := filepath.Glob(filepath.Join(dir, "lib", "*", "site-packages", "envoy", "_bin", "envoy"))
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("no Envoy in %s: run scripts/setup.sh", dir)
	}
	return found[0], os.Chmod(found[0], 0o755) // a wheel does not keep the mode
}

// fetchEtcd takes etcd out of Debian's package without installing it, since
// an installed one would start on the machine.
func (l *Lab) fetchEtcd(ctx context.Context) (string, error) {
	if bin, err := exec.LookPath("etcd"); err == nil {
		return bin, nil
	}
	dir := l.cache("etcd")
	bin := filepath.Join(dir, "usr", "bin", "etcd")
	if exists(bin) {
		return bin, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	l.say("fetching etcd")
	cmd := exec.CommandContext(ctx, "sh", "-c", "apt-get download -qq etcd-server || { apt-get update -qq && apt-get download -qq etcd-server; }; dpkg-deb -x etcd-server_*.deb .")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch etcd (Debian's package etcd-server): %w: %s", err, out)
	}
	if !exists(bin) {
		return "", errors.New("fetch etcd: no usr/bin/etcd in the package etcd-server")
	}
	return bin, nil
}

// istioFile keeps a file of the istio module beside the binaries, so that the
// module's source is needed for building only.
func (l *Lab) istioFile(ctx context.Context, name string) (string, error) {
	file, err := l.cached(pilotDiscovery, filepath.Base(name))
	if err != nil || exists(file) {
		return file, err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", pilotDiscovery.path)
	cmd.Dir = l.buildDir(pilotDiscovery.module)
	dir, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the module %s: %w", pilotDiscovery.path, err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), name))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(file+".new", b, 0o644); err != nil {
		return "", err
	}
	return file, os.Rename(file+".new", file)
}
