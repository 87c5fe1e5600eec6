// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// The tests of this file and its neighbours run the program as a user would,
// with real namespaces, a real TUN and the machine's own clients.

// e2eTimeout ends a program that hangs, so that the test says which.
const e2eTimeout = 4 * time.Minute

// needRoot skips a test that makes namespaces, for a developer without root. In
// CI a skip is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv(testVariable) == "require" {
		t.Fatal("root is needed")
	}
	t.Skip("root is needed")
}

// A lab is an embedded mesh with Heimdall, and a folder for the sockets of the
// sessions that join it.
type lab struct {
	*demoMesh
	runtime string
}

func newLab(t *testing.T, cfg minimesh.Config) *lab {
	t.Helper()
	needRoot(t)
	logs, err := openLogs(&ObserveConfig{}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	d, stop, err := startDemo(t.Context(), cfg, logs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return &lab{demoMesh: d, runtime: shortDir(t)}
}

// enrolled are the flags by which exec joins the lab through Heimdall.
func (l *lab) enrolled() []string {
	return []string{"exec", "--heimdall", l.heimdall.url.String(), "--heimdall-ca", l.caFile(), "--token-file", l.tokenFile()}
}

// asAccount are the flags by which exec joins the lab as a service account.
func (l *lab) asAccount(t *testing.T, account string) []string {
	t.Helper()
	token := filepath.Join(t.TempDir(), "istio-token")
	if err := os.WriteFile(token, []byte(l.mesh.MintToken(account, "external")), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"exec", "--istiod", l.mesh.IstiodAddr().String(), "--istiod-ca", l.caFile(), "--istio-token-file", token,
		"--namespace", "external", "--service-account", account,
	}
}

// naspTun prepares a run of the program, which is this test binary.
func (l *lab) naspTun(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return naspTun(t, l.runtime, args...)
}

func naspTun(t *testing.T, runtime string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), e2eTimeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Args[0] = "nasp-tun"
	cmd.WaitDelay = time.Second // a killed program's children hold its output
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtime, "HOME="+runtime)
	return cmd
}

// A result is how a program ended and what it said.
type result struct {
	code        int
	out, errors string
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func (r result) want(t *testing.T, code int, out ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("got exit code %d, want %d", r.code, code)
	}
	for _, s := range out {
		if !strings.Contains(r.out, s) {
			t.Errorf("the output lacks %q", s)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s\nerrors:\n%s", r.out, r.errors)
	}
}

func (r result) wantError(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("got exit code %d, want %d", r.code, code)
	}
	for _, s := range texts {
		if !strings.Contains(r.errors, s) {
			t.Errorf("the errors lack %q", s)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s\nerrors:\n%s", r.out, r.errors)
	}
}

// buildStatic builds a program of testdata without libc, so that it resolves
// names by itself.
func buildStatic(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// shortDir is a folder whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

const (
	demoIdentity = "spiffe://cluster.local/ns/external/sa/test-http"
	echoIdentity = "spiffe://cluster.local/ns/testing/sa/default"
)

func TestDemo(t *testing.T) {
	needRoot(t)
	r := finish(t, naspTun(t, shortDir(t), "demo"))
	r.want(t, 0,
		"Hostname: echo-",
		"host=echo.testing",
		"x-forwarded-client-cert=By="+echoIdentity+`;Hash=`,
		`;Subject="";URI=`+demoIdentity,
		"request: name 0, response: name 0",
		"request: name 2, response: name 2",
		"message=hello",
		"What just happened",
	)
	if n := strings.Count(r.out, "URI="+demoIdentity); n != 2 {
		t.Errorf("the identity was seen %d times, want 2: HTTP and gRPC", n)
	}
	if r.errors != "" {
		t.Errorf("the demo complained: %s", r.errors)
	}
}

// Whatever CMD does with its status and signals is what a caller sees.
func TestDemoEndsAsCommandEnds(t *testing.T) {
	needRoot(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		error string
	}{
		{"success", []string{"true"}, 0, ""},
		{"a status", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"the shell's own 127", []string{"sh", "-c", "exit 127"}, 127, ""},
		{"no such program", []string{"no-such-program"}, 127, "no-such-program"},
		{"not executable", []string{plain}, 126, plain},
		{"a signal", []string{"sh", "-c", "kill -TERM $$"}, -1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := finish(t, naspTun(t, shortDir(t), append([]string{"demo", "--"}, tt.args...)...))
			r.wantError(t, tt.code, tt.error)
			if tt.error == "" && r.errors != "" {
				t.Errorf("CMD's own end must be silent: %s", r.errors)
			}
		})
	}
}

// The command that demo --serve prints is tried as printed.
func TestDemoServe(t *testing.T) {
	needRoot(t)
	runtime := shortDir(t)
	cmd := naspTun(t, runtime, "demo", "--serve")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := readUntil(t, out, " exec --heimdall ")
	fields := strings.Fields(line)
	r := finish(t, naspTun(t, runtime, fields[1:]...))
	r.want(t, 0, "URI="+demoIdentity)
	dir := filepath.Dir(fields[len(fields)-5])
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the folder of the token: %v", err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C is how it ends: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the token is left behind in %s", dir)
	}
}

// readUntil reads lines until one that contains text.
func readUntil(t *testing.T, r io.Reader, text string) string {
	t.Helper()
	var line []byte
	one := make([]byte, 1)
	for {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("%q did not come: %v", text, err)
		}
		if one[0] != '\n' {
			line = append(line, one[0])
			continue
		}
		if strings.Contains(string(line), text) {
			return string(line)
		}
		line = line[:0]
	}
}
