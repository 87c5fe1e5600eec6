// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/client-go/rest"
)

const (
	// startLimit is how long an API server may take; it needs 4 s alone, and
	// much more on a machine that builds.
	startLimit = 2 * time.Minute
	// probeEvery is how often it is asked whether it is ready.
	probeEvery = 200 * time.Millisecond
	// stopLimit is how long a process may take to end by itself.
	stopLimit = 20 * time.Second
	admin     = "admin-of-the-test"
)

// A Cluster is a kube-apiserver over etcd, on loopback. No controllers run.
type Cluster struct {
	dir       string
	apiBin    string
	port      string
	etcd      string // URL
	apiServer *process
	log       *os.File
}

// A process is a program that runs until it is stopped.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a cluster for one test. Without KUBE_APISERVER_BIN and ETCD_BIN
// in the environment, as `make e2e` sets them, the test is skipped.
func Start(t *testing.T) *Cluster {
	t.Helper()
	apiBin, etcdBin := os.Getenv("KUBE_APISERVER_BIN"), os.Getenv("ETCD_BIN") //rule:allow a test's own
	if apiBin == "" || etcdBin == "" {
		t.Skip("no KUBE_APISERVER_BIN and ETCD_BIN: make e2e runs this")
	}
	c := &Cluster{dir: t.TempDir(), apiBin: apiBin, port: freePort(t)}
	c.etcd = "http://127.0.0.1:" + freePort(t)
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	c.log = log
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the cluster's log:\n%s", tail(log.Name()))
		}
		log.Close()
	})
	peer := "http://127.0.0.1:" + freePort(t)
	etcd := c.run(t, etcdBin, "--data-dir="+filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls="+c.etcd,
		"--advertise-client-urls="+c.etcd, "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	t.Cleanup(etcd.stop)
	c.writeKeys(t)
	c.StartAPIServer(t)
	t.Cleanup(c.StopAPIServer)
	return c
}

// freePort returns a port of loopback that nobody has now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func (c *Cluster) writeKeys(t *testing.T) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	for name, b := range map[string][]byte{"sa.key": text, "tokens": []byte(admin + ",admin,admin,system:masters\n")} {
		if err := os.WriteFile(filepath.Join(c.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// StartAPIServer starts the API server and waits until it is ready.
func (c *Cluster) StartAPIServer(t *testing.T) {
	t.Helper()
	key := filepath.Join(c.dir, "sa.key")
	c.apiServer = c.run(t, c.apiBin, "--etcd-servers="+c.etcd, "--bind-address=127.0.0.1", "--secure-port="+c.port,
		"--cert-dir="+filepath.Join(c.dir, "certs"), "--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key, "--token-auth-file="+filepath.Join(c.dir, "tokens"),
		"--authorization-mode=RBAC", "--allow-privileged=true", "--disable-admission-plugins=ServiceAccount")
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		err := c.ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-c.apiServer.done:
			t.Fatal("kube-apiserver ended")
		case <-ctx.Done():
			t.Fatalf("kube-apiserver is not ready: %v", err)
		}
	}
}

func (c *Cluster) ready(ctx context.Context) error {
	if _, err := os.Stat(c.certificate()); err != nil {
		return err
	}
	var text json.RawMessage
	return c.do(ctx, http.MethodGet, "/api/v1/namespaces/default", "", nil, &text)
}

// StopAPIServer ends the API server; what it knew stays in etcd.
func (c *Cluster) StopAPIServer() { c.apiServer.stop() }

func (c *Cluster) certificate() string { return filepath.Join(c.dir, "certs", "apiserver.crt") }

// REST is how the administrator reaches the cluster.
func (c *Cluster) REST() *rest.Config { return c.As(admin) }

// As is how the bearer of a token reaches the cluster.
func (c *Cluster) As(token string) *rest.Config {
	return &rest.Config{
		Host: "https://127.0.0.1:" + c.port, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: c.certificate()},
	}
}

// Apply makes the objects of a YAML text what the text says, their status too.
func (c *Cluster) Apply(t *testing.T, text string) {
	t.Helper()
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o map[string]any
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if o == nil {
			continue
		}
		path, err := c.path(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		const query, media = "?force=true&fieldManager=test", "application/apply-patch+yaml"
		c.Do(t, http.MethodPatch, path+query, media, o, nil)
		if o["status"] != nil {
			c.Do(t, http.MethodPatch, path+"/status"+query, media, o, nil)
		}
	}
}

// Do makes one call as the administrator; an empty media type is JSON.
func (c *Cluster) Do(t *testing.T, method, path, media string, in, out any) {
	t.Helper()
	if err := c.do(t.Context(), method, path, media, in, out); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) do(ctx context.Context, method, path, media string, in, out any) error {
	h, err := rest.HTTPClientFor(c.REST())
	if err != nil {
		return err
	}
	defer h.CloseIdleConnections()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://127.0.0.1:"+c.port+path, body)
	if err != nil {
		return err
	}
	if media == "" {
		media = "application/json"
	}
	req.Header.Set("Content-Type", media)
	resp, err := h.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// path is where an object is served. A kind whose definition has just been
// applied takes a moment.
func (c *Cluster) path(ctx context.Context, o map[string]any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		path, err := c.find(ctx, o)
		if err == nil {
			return path, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", err
		}
	}
}

func (c *Cluster) find(ctx context.Context, o map[string]any) (string, error) {
	version, _ := o["apiVersion"].(string)
	kind, _ := o["kind"].(string)
	m, _ := o["metadata"].(map[string]any)
	name, _ := m["name"].(string)
	namespace, _ := m["namespace"].(string)
	base := "/apis/" + version
	if !strings.Contains(version, "/") {
		base = "/api/" + version
	}
	var list struct {
		Resources []struct {
			Name, Kind string
			Namespaced bool
		}
	}
	if err := c.do(ctx, http.MethodGet, base, "", nil, &list); err != nil {
		return "", err
	}
	for _, r := range list.Resources {
		if r.Kind != kind || strings.Contains(r.Name, "/") {
			continue
		}
		if r.Namespaced {
			base += "/namespaces/" + namespace
		}
		return base + "/" + r.Name + "/" + name, nil
	}
	return "", fmt.Errorf("kind %s of %s is not served", strconv.Quote(kind), version)
}

// run starts a program that ends with the test at the latest.
func (c *Cluster) run(t *testing.T, bin string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(p.done)
		_ = cmd.Wait() // it is stopped by a signal
	})
	return p
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	t := time.NewTimer(stopLimit)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tail is the end of a file.
func tail(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}
