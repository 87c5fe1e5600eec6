// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// Each client is one that this machine has, unchanged. All of them ask the
// resolver in their own way.
func TestExecCarriesOrdinaryPrograms(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	static := buildStatic(t, "./testdata/get")
	const python = `import urllib.request as u; print(u.urlopen("http://echo.testing/").read().decode())`
	const node = `require("http").get("http://echo.testing/", r => r.pipe(process.stdout))`
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"curl", []string{"curl", "-sS", "http://echo.testing"}},
		{"curl by full name", []string{"curl", "-sS", "http://echo.testing.svc.cluster.local/"}},
		{"static Go", []string{static, "http://echo.testing/"}},
		{"python3", []string{"python3", "-c", python}},
		{"node", []string{"node", "-e", node}},
		{"java", []string{"java", filepath.Join("testdata", "Get.java"), "http://echo.testing/"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needProgram(t, tt.args[0])
			cmd := l.naspTun(t, append(append(l.enrolled(), "--"), tt.args...)...)
			cmd.Env = append(cmd.Env, "HOME="+os.Getenv("HOME"))
			r := finish(t, cmd)
			r.want(t, 0, "host=echo.testing", "By="+echoIdentity, "URI="+demoIdentity)
			if r.errors != "" {
				t.Errorf("nasp-tun has nothing to say when all is well: %s", r.errors)
			}
		})
	}
}

// Ten at once, each with its own TUN of the same name and address, and its own
// identity.
func TestExecTenAtOnce(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	var wg sync.WaitGroup
	for i := range 10 {
		account := fmt.Sprintf("laptop-%d", i)
		cmd := l.naspTun(t, append(l.asAccount(t, account), "--", "curl", "-sS", "http://echo.testing")...)
		wg.Go(func() { finish(t, cmd).want(t, 0, "URI=spiffe://cluster.local/ns/external/sa/"+account+"\n") })
	}
	wg.Wait()
}

// Each layer that can keep a node out of the mesh is named, with what to do.
func TestExecRefusals(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	other, err := minimesh.New(minimesh.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	closed := closedPort(t)
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"nobody at istiod's address", []string{"--istiod", closed}, []string{"join the mesh at " + closed, "unreachable", "connection refused", "hint: istiod, or a gateway"}},
		{"the root of another mesh", []string{"--istiod-ca", file("other.pem", string(other.RootPEM()))}, []string{"join the mesh", "certificate not trusted", "hint: the root certificates must be those of this mesh"}},
		{"another name in istiod's certificate", []string{"--istiod-server-name", "istiod.elsewhere.svc"}, []string{"certificate not trusted", "--istiod-server-name"}},
		{"no certificates in the file", []string{"--istiod-ca", file("empty.pem", "")}, []string{"empty.pem"}},
		{"a token of another mesh", []string{"--istio-token-file", file("token", other.MintToken("laptop", "external"))}, []string{"join the mesh", "token refused", "hint: istiod takes tokens of its cluster for the audience istio-ca"}},
		{"an expired token", []string{"--istio-token-file", file("old", l.mesh.Mint(minimesh.Claims{ServiceAccount: "laptop", Namespace: "external", TTL: -1}))}, []string{"token expired"}},
		{"no token file", []string{"--istio-token-file", filepath.Join(dir, "none")}, []string{"none: no such file"}},
		{"another namespace than the token's", []string{"--namespace", "testing"}, []string{"join the mesh", "hint: --namespace and --service-account must be those of the token"}},
		{"a cluster that istiod does not know", []string{"--cluster-id", "elsewhere"}, []string{"join the mesh", "--cluster-id"}},
		{"an unknown user", []string{"--user", "nobody-of-this-name"}, []string{"user: ", "nobody-of-this-name"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := append(append(l.asAccount(t, "laptop"), tt.args...), "--", "sh", "-c", "echo CMD ran")
			r := finish(t, l.naspTun(t, args...))
			r.wantError(t, exitSetUp, append(tt.want, "nasp-tun: exec: ")...)
			if r.out != "" {
				t.Errorf("CMD ran outside: %s", r.out)
			}
		})
	}
}

// Heimdall's refusals come before anything of the mesh.
func TestExecHeimdallRefuses(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	bad := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(bad, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"a wrong token", []string{"--token-file", bad}, []string{"hint: "}},
		{"a CA that did not sign it", []string{"--heimdall-ca", ""}, []string{"certificate", "--heimdall-ca"}},
		{"nobody there", []string{"--heimdall", "https://" + closedPort(t) + "/config"}, []string{"connection refused"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(append(l.enrolled(), tt.args...), "--", "true")
			finish(t, l.naspTun(t, args...)).wantError(t, exitSetUp, tt.want...)
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A held session waits inside with a shell that does what it is told.
type held struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   io.Reader
}

func hold(t *testing.T, l *lab, flags ...string) *held {
	t.Helper()
	args := append(append(l.enrolled(), flags...), "--", "bash", "-c", "echo ready; while read -r line; do eval \"$line\"; echo; echo done; done")
	h := &held{cmd: l.naspTun(t, args...)}
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if h.out, err = h.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	h.cmd.Stderr = t.Output()
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.stdin.Close()
		_ = h.cmd.Wait()
	})
	readUntil(t, h.out, "ready")
	return h
}

// do runs a command inside and returns what it printed.
func (h *held) do(t *testing.T, command string) string {
	t.Helper()
	if _, err := io.WriteString(h.stdin, command+"\n"); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	one := make([]byte, 1)
	for !strings.HasSuffix(b.String(), "\ndone\n") {
		if _, err := h.out.Read(one); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		b.Write(one)
	}
	return strings.TrimSuffix(b.String(), "\ndone\n")
}

func TestLookingIn(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	one := hold(t, l, "--name", "one")
	if out := one.do(t, "curl -sS http://echo.testing"); !strings.Contains(out, "URI="+demoIdentity) {
		t.Fatalf("got %q", out)
	}

	finish(t, l.naspTun(t, "status")).want(t, 0, "session", "one (pid ", demoIdentity, "connected", "superpackets")
	finish(t, l.naspTun(t, "services")).want(t, 0, "echo.testing.svc.cluster.local", "9000", "mTLS", "2/2")
	finish(t, l.naspTun(t, "services", "nothing*")).want(t, 0, "SERVICE")
	finish(t, l.naspTun(t, "explain", "echo.testing")).want(t, 0, "listener", "filter chain", "route", "cluster",
		"outbound|80||echo.testing.svc.cluster.local", "mTLS", echoIdentity)
	finish(t, l.naspTun(t, "explain", "echo.testing:9000")).want(t, 0, "outbound|9000||echo.testing.svc.cluster.local")
	finish(t, l.naspTun(t, "explain", "nobody.testing")).want(t, exitNotFound, "REFUSED")

	var st sessionStatus
	r := finish(t, l.naspTun(t, "status", "-o", "json"))
	if err := json.Unmarshal([]byte(r.out), &st); err != nil {
		t.Fatalf("%v\n%s", err, r.out)
	}
	if st.APIVersion != "nasp-tun/v1" || st.Session != "one" || !st.Mesh.Ready || st.Mesh.Identity.ID != demoIdentity {
		t.Errorf("got %+v", st)
	}
	for _, s := range st.Settings {
		if s.Name == "name" && (s.Value != "one" || s.Source != sourceFlag) {
			t.Errorf("got %+v", s)
		}
	}

	hold(t, l, "--name", "two")
	finish(t, l.naspTun(t, "status")).wantError(t, exitManySessions, "one (pid ", "two (pid ", "hint: choose one with --session")
	finish(t, l.naspTun(t, "status", "--session", "two")).want(t, 0, "two (pid ")
}

func TestMetricsAndRecords(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	addr := closedPort(t)
	records := filepath.Join(t.TempDir(), "access.log")
	h := hold(t, l, "--metrics-addr", addr, "--access-log", records, "--access-log-format", "json")
	h.do(t, "curl -sS http://echo.testing/status/404")
	metrics := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{
		"nasp_tun_build_info{", "nasp_tun_ready 1", `istio_build{component="proxy"`, `istio_requests_total{`, `response_code="404"`, `reporter="source"`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
	if got := get(t, "http://"+addr+"/healthz"); got != "ok\n" {
		t.Errorf("healthz: got %q", got)
	}
	_ = h.stdin.Close()
	_ = h.cmd.Wait()
	text, err := os.ReadFile(records)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "404") || !strings.Contains(string(text), "/status/404") {
		t.Errorf("the record of the request: %s", text)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What is not the mesh's passes from the host's own sockets; the host's
// loopback only by its own name, or by --host-port.
func TestOutsideTheMesh(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "the host's own server")
	}))
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	h := hold(t, l, "--host-port", port)
	for _, url := range []string{"http://192.0.0.3:" + port, "http://host.nasp-tun.internal:" + port, "http://127.0.0.1:" + port} {
		if out := h.do(t, "curl -sS "+url); out != "the host's own server" {
			t.Errorf("%s: got %q", url, out)
		}
	}
	const refused = "7\n" // curl's status for a refused connection
	closed := hold(t, l, "--no-host-loopback", "--name", "closed")
	if out := closed.do(t, "curl -s http://192.0.0.3:"+port+"; echo $?"); out != refused {
		t.Errorf("192.0.0.3 must refuse: got %q", out)
	}
	if out := closed.do(t, "curl -s http://127.0.0.1:"+port+"; echo $?"); out != refused {
		t.Errorf("127.0.0.1 must be CMD's own: got %q", out)
	}
}

// istiod goes away under a live connection and comes back.
func TestIstiodAway(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	h := hold(t, l)
	h.do(t, "exec 3<>/dev/tcp/echo.testing/9000")
	live := func(when string) {
		if out := h.do(t, "echo "+when+" >&3; read -r x <&3; echo $x"); out != when+"\n" {
			t.Errorf("the live connection: got %q, want %q", out, when)
		}
	}
	live("before")
	l.mesh.StopIstiod()
	live("away")
	if out := h.do(t, "curl -sS http://echo.testing"); !strings.Contains(out, demoIdentity) {
		t.Errorf("without istiod: got %q", out)
	}
	if err := l.mesh.StartIstiod(); err != nil {
		t.Fatal(err)
	}
	if err := l.mesh.WaitSynced(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	live("after")
	if out := h.do(t, "curl -sS http://echo.testing"); !strings.Contains(out, demoIdentity) {
		t.Errorf("after istiod came back: got %q", out)
	}
}
