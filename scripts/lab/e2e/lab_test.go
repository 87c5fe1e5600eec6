// SPDX-License-Identifier: Apache-2.0

// Package e2e runs the built nasp-tun, and programs that know nothing of it,
// in the laptop's namespace of the lab. `make e2e` starts the lab first.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

const (
	// runLimit ends a program that hangs, so that the test says which.
	runLimit = 2 * time.Minute
	// takeLimit is how long istiod and the Envoys may take to do what a new
	// object says.
	takeLimit = 30 * time.Second
	// idEcho is the identity of both echo pods.
	idEcho = "spiffe://cluster.local/ns/testing/sa/default"
)

// lab is the one that all tests share; each leaves it as it was.
var lab *cluster.Lab

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if lab, err = cluster.Open(os.Stderr); err == nil {
		err = lab.Lock()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer lab.Unlock()
	if text, up := lab.Status(context.Background()); !up {
		fmt.Fprintln(os.Stderr, "e2e: the lab is not up: make lab, or make e2e, which does it")
		fmt.Fprint(os.Stderr, text)
		return 1
	}
	return m.Run()
}

func identity(account string) string { return "spiffe://cluster.local/ns/external/sa/" + account }

// A result is how a program ended and what it said.
type result struct {
	code      int
	out, errs string
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
		t.Fatalf("output:\n%s\nerrors:\n%s", r.out, r.errs)
	}
}

func naspTun() string { return filepath.Join(lab.Root(), "bin", "nasp-tun") }

// onLaptop prepares a program in the laptop's namespace.
func onLaptop(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", cluster.Laptop}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// finish runs a program to its end.
func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, errs.String())
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// as runs a program to its end in the mesh, as an account of namespace external.
func as(t *testing.T, account string, args ...string) result {
	t.Helper()
	return finish(t, execAs(t, t.TempDir(), account, nil, args...))
}

func execAs(t *testing.T, runtime, account string, flags []string, args ...string) *exec.Cmd {
	t.Helper()
	all := append([]string{naspTun(), "exec"}, lab.JoinFlags(account)...)
	all = append(append(append(all, flags...), "--"), args...)
	cmd := onLaptop(t, all...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtime, "HOME="+runtime)
	return cmd
}

// A session is an exec that goes on, and in which programs are run.
type session struct {
	t       *testing.T
	runtime string
	inside  int // pid of a process in the session's namespaces
	access  string
}

// open starts a session and waits until programs can run in it.
func open(t *testing.T, account string) *session {
	t.Helper()
	s := &session{t: t, runtime: t.TempDir()}
	s.access = filepath.Join(s.runtime, "access.log")
	cmd := execAs(t, s.runtime, account, []string{"--access-log", s.access}, "sh", "-c", "echo $$; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // ends cat, and with it the session
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the session ended with %v\n%s", err, errs.String())
		} else if errs.Len() > 0 {
			t.Logf("the session said:\n%s", errs.String())
		}
	})
	var line [16]byte
	n, err := out.Read(line[:])
	if err != nil {
		in.Close()
		t.Fatalf("no session: %v", err)
	}
	if s.inside, err = strconv.Atoi(strings.TrimSpace(string(line[:n]))); err != nil {
		t.Fatal(err)
	}
	return s
}

// command prepares a program inside the session.
func (s *session) command(args ...string) *exec.Cmd {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	s.t.Cleanup(cancel)
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(s.inside), "-n", "-m", "--"}, args...)...)
}

// run runs a program inside the session to its end.
func (s *session) run(args ...string) result {
	s.t.Helper()
	return finish(s.t, s.command(args...))
}

// ask runs a verb of nasp-tun that looks into the session.
func (s *session) ask(args ...string) result {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), naspTun(), args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.runtime, "HOME="+s.runtime)
	return finish(s.t, cmd)
}

// askJSON decodes the answer of a verb.
func (s *session) askJSON(into any, args ...string) {
	s.t.Helper()
	r := s.ask(append(args, "-o", "json")...)
	r.want(s.t, 0)
	if err := json.Unmarshal([]byte(r.out), into); err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, r.out)
	}
}

// records are the lines of the session's access log so far.
func (s *session) records() []string {
	s.t.Helper()
	b, err := os.ReadFile(s.access)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// recorded waits for an access record that holds all texts.
func (s *session) recorded(what string, texts ...string) {
	s.t.Helper()
	eventually(s.t, "the record of "+what, func() error {
		all := s.records()
		for _, line := range all {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return nil
			}
		}
		return fmt.Errorf("no record with %q in\n%s", texts, strings.Join(all, "\n"))
	})
}

func api(t *testing.T) *cluster.API {
	t.Helper()
	a, err := lab.API()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// apply makes objects for the time of a test, and at its end removes them and
// waits until that, too, has reached whom it concerns, which gone tells.
func apply(t *testing.T, text string, gone func() error) {
	t.Helper()
	a := api(t)
	if err := a.Apply(t.Context(), []byte(text)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Delete(context.Background(), []byte(text)); err != nil {
			t.Error(err)
		}
		err := cluster.Poll(context.Background(), takeLimit, "the objects to be gone everywhere", func(context.Context) error { return gone() })
		if err != nil {
			t.Error(err)
		}
	})
}

// eventually tries until it is without error.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := cluster.Poll(t.Context(), takeLimit, what, func(context.Context) error { return try() }); err != nil {
		t.Fatal(err)
	}
}
