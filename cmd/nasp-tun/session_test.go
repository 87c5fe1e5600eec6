// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

// A socket's address is short, and the folders of tests are not.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "nasp-tun")
}

func mustListen(t *testing.T, dir, name string) (net.Listener, session) {
	t.Helper()
	l, s, err := listenSession([]string{dir}, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, s
}

func TestSessionsAreFound(t *testing.T) {
	dir := socketDir(t)
	if _, err := chooseSession([]string{dir}, ""); !as[*noSessionError](err) {
		t.Fatalf("no folder: got %v", err)
	}
	_, curl := mustListen(t, dir, "curl")
	if got, err := chooseSession([]string{dir}, ""); err != nil || got != curl {
		t.Fatalf("one session: got %v, %v", got, err)
	}
	_, other := mustListen(t, dir, "my-app")
	_, err := chooseSession([]string{dir}, "")
	var many *manySessionsError
	if !errors.As(err, &many) || !strings.Contains(err.Error(), "curl (pid "+strconv.Itoa(os.Getpid())+"), my-app (pid ") {
		t.Fatalf("two sessions: got %v", err)
	}
	if got, err := chooseSession([]string{dir}, "my-app"); err != nil || got != other {
		t.Fatalf("by name: got %v, %v", got, err)
	}
	if _, err := chooseSession([]string{dir}, strconv.Itoa(os.Getpid())); !errors.As(err, &many) {
		t.Fatalf("by a process id that two have: got %v", err)
	}
	if _, err := chooseSession([]string{dir}, "wget"); err == nil || err.Error() != `no session "wget" runs` {
		t.Fatalf("by a wrong name: got %v", err)
	}
}

// What a killed session leaves is removed by whoever looks next; what is not a
// session's is left alone.
func TestStaleSocketsAreRemoved(t *testing.T) {
	dir := socketDir(t)
	l, dead := mustListen(t, dir, "dead")
	_, alive := mustListen(t, dir, "alive")
	ul, ok := l.(*net.UnixListener)
	if !ok {
		t.Fatalf("got %T", l)
	}
	ul.SetUnlinkOnClose(false)
	_ = ul.Close()
	stranger := filepath.Join(dir, "notes-1.sock")
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := sessions([]string{dir}), []session{alive}; !cmp.Equal(got, want, cmp.AllowUnexported(session{})) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := os.Lstat(dead.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead socket is still there: %v", err)
	}
	if _, err := os.Lstat(stranger); err != nil {
		t.Errorf("a stranger's file is gone: %v", err)
	}
}

func TestSessionFolderOfOthersIsNotUsed(t *testing.T) {
	open := socketDir(t)
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	link := socketDir(t)
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	good := socketDir(t)
	_, s, err := listenAndKeep(t, []string{open, link, good}, "x")
	if err != nil || filepath.Dir(s.path) != good {
		t.Errorf("got %q, %v; want a socket in %q", s.path, err, good)
	}
	if _, _, err := listenAndKeep(t, []string{open, link}, "x"); err == nil {
		t.Error("a folder that others can write was used")
	}
}

func listenAndKeep(t *testing.T, dirs []string, name string) (net.Listener, session, error) {
	t.Helper()
	l, s, err := listenSession(dirs, name)
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return l, s, err
}

func TestLongFolderIsPassedOver(t *testing.T) {
	long, good := filepath.Join(t.TempDir(), strings.Repeat("x", 100)), socketDir(t)
	_, s, err := listenAndKeep(t, []string{long, good}, "x")
	if err != nil || filepath.Dir(s.path) != good {
		t.Errorf("got %q, %v", s.path, err)
	}
}

func TestSessionNames(t *testing.T) {
	for in, want := range map[string]string{
		"curl": "curl", "/usr/bin/curl": "curl", "./.hidden": "hidden", "a b": "a_b", "...": "session",
		"/": "_", "x" + strings.Repeat("y", 60): "x" + strings.Repeat("y", 31), "naïve": "na_ve",
	} {
		if got := sessionName(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		if _, err := parseSessionName(sessionName(in)); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
	for _, path := range []string{"x.sock", "-1.sock", "x-0.sock", "x-y.sock", "x-1", "x-99999999999999999999.sock"} {
		if s, ok := parseSession(path); ok {
			t.Errorf("%q: taken for session %v", path, s)
		}
	}
	if s, ok := parseSession("/run/a-b-12.sock"); !ok || s.Name != "a-b" || s.PID != 12 {
		t.Errorf("got %v, %v", s, ok)
	}
}

// Whoever the kernel names as the peer decides, not what the file's mode allows.
func TestSocketAnswersItsOwnerAndRootOnly(t *testing.T) {
	for _, tt := range []struct {
		name string
		uid  uint32
		err  error
		ok   bool
	}{
		{"the owner", 1000, nil, true},
		{"root", 0, nil, true},
		{"another user", 1001, nil, false},
		{"nobody knows", 0, errors.New("no credentials"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, s := mustListen(t, socketDir(t), "x")
			own := &ownerListener{
				Listener: l, owner: 1000, log: slog.New(slog.DiscardHandler),
				uid: func(*net.UnixConn) (uint32, error) { return tt.uid, tt.err },
			}
			ctx, cancel := context.WithCancel(t.Context())
			var g errgroup.Group
			g.Go(func() error {
				return serveHTTP(ctx, own, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), own.log)
			})
			c := http.Client{Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return dialSocket(ctx, s.path)
				},
			}}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://session/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("got %v, want an answer: %v", err, tt.ok)
			}
			cancel()
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPeerCredentials(t *testing.T) {
	l, s := mustListen(t, socketDir(t), "x")
	var g errgroup.Group
	g.Go(func() error {
		c, err := dialSocket(t.Context(), s.path)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	u, ok := c.(*net.UnixConn)
	if !ok {
		t.Fatalf("got %T", c)
	}
	if uid, err := peerUID(u); err != nil || uid != uint32(os.Geteuid()) {
		t.Errorf("got %d, %v", uid, err)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
