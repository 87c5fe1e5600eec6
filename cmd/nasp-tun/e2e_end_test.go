// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// A mute listens and never says a word: a firewall that swallows, or an istiod
// that hangs.
func mute(t *testing.T) (address string, called <-chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 16)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			select {
			case calls <- struct{}{}:
			default:
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		accepting.Wait()
	})
	return l.Addr().String(), calls
}

// A signal while nothing runs yet ends everything at once, as the signal says
// and without a word.
func TestInterruptedSetUp(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			istiod, called := mute(t)
			args := append(l.asAccount(t, "laptop"), "--istiod", istiod, "--", "sh", "-c", "echo CMD ran")
			cmd := l.naspTun(t, args...)
			var out, errs strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errs
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // no terminal tells CMD by itself
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-called
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if ws, ok := exit.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != sig {
				t.Errorf("got %v, want death by %v", exit, sig)
			}
			if out.Len() > 0 || errs.Len() > 0 {
				t.Errorf("it spoke: %q %q", out.String(), errs.String())
			}
			if left := sessions([]string{filepath.Join(l.runtime, "nasp-tun")}); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// An istiod that never answers is given up after joinTimeout, and named.
func TestSilentIstiodIsNamed(t *testing.T) {
	t.Parallel() // it waits for most of its time
	l := newLab(t, minimesh.Config{})
	istiod, _ := mute(t)
	r := finish(t, l.naspTun(t, append(l.asAccount(t, "laptop"), "--istiod", istiod, "--", "echo", "CMD ran")...))
	r.wantError(t, exitSetUp, "waiting for istiod at "+istiod, "join the mesh at "+istiod, "hint: istiod, or a gateway that leads to it")
	if r.out != "" {
		t.Errorf("CMD ran: %s", r.out)
	}
}

// CMD writes, closes and ends at once. What the kernel of its network still
// holds must arrive all the same.
func TestLastWordsArrive(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	srv, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	_, port, err := net.SplitHostPort(srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const size = 32 << 20
	cmd := l.naspTun(t, append(l.enrolled(), "--", "bash", "-c",
		fmt.Sprintf("head -c %d /dev/zero >/dev/tcp/192.0.0.3/%s", size, port))...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := srv.Accept()
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, c)
	_ = c.Close()
	if err != nil || n != size {
		t.Errorf("got %d bytes of %d: %v", n, size, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A killed nasp-tun takes CMD's network with it, and CMD itself; the socket that
// it leaves is gone when somebody looks.
func TestKilledParent(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	h := hold(t, l)
	pid := strings.TrimSpace(h.do(t, "echo $$"))
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, h.out); err != nil { // ends when CMD has closed it too
		t.Fatal(err)
	}
	_ = h.cmd.Wait()
	if text, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(text), ") Z ") {
		t.Errorf("CMD lives on: %s", text)
	}
	finish(t, l.naspTun(t, "status")).wantError(t, exitNoSession)
	if left, err := filepath.Glob(filepath.Join(l.runtime, "nasp-tun", "*.sock")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Killed at any moment of its start, nasp-tun leaves nothing: no CMD outside, no
// process of the second stage, and no socket that somebody would still find. The
// time only chooses the moments.
func TestKilledAtAnyMoment(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	const mark = "86399.25"
	for i := range 20 {
		cmd := l.naspTun(t, append(l.enrolled(), "--", "sleep", mark)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		moment := time.NewTimer(time.Duration(i) * 8 * time.Millisecond)
		<-moment.C
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); ; <-tick.C {
		left := processesWith(t, mark)
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left behind: %q", left)
		}
	}
	finish(t, l.naspTun(t, "status")).wantError(t, exitNoSession)
}

// processesWith lists the processes with an argument.
func processesWith(t *testing.T, arg string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), "\x00"+arg+"\x00") {
			found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}

// The token may come by standard input or by nasp's own variable.
func TestWhereTokensComeFrom(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	token, err := os.ReadFile(l.tokenFile())
	if err != nil {
		t.Fatal(err)
	}
	common := []string{"exec", "--heimdall-ca", l.caFile()}
	t.Run("standard input", func(t *testing.T) {
		cmd := l.naspTun(t, append(common, "--heimdall", l.heimdall.url.String(), "--token-file", "-", "--", "curl", "-sS", "http://echo.testing")...)
		cmd.Stdin = strings.NewReader(string(token))
		finish(t, cmd).want(t, 0, "URI="+demoIdentity)
	})
	t.Run("nasp's variables", func(t *testing.T) {
		cmd := l.naspTun(t, append(common, "--", "curl", "-sS", "http://echo.testing")...)
		cmd.Env = append(cmd.Env, "HEIMDALL_URL="+l.heimdall.url.String(), "NASP_AUTH_TOKEN="+strings.TrimSpace(string(token)))
		finish(t, cmd).want(t, 0, "URI="+demoIdentity)
	})
	t.Run("the file of settings", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "config.yaml")
		text := fmt.Sprintf("heimdall: %s\nheimdall-ca: %s\ntoken-file: %s\n", l.heimdall.url, l.caFile(), l.tokenFile())
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		finish(t, l.naspTun(t, "exec", "--config", file, "curl", "-sS", "http://echo.testing")).want(t, 0, "URI="+demoIdentity)
	})
}

func TestExecAsAnotherUser(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	args := append(l.enrolled(), "--user", "4242", "--", "sh", "-c", "id -u; curl -sS http://echo.testing")
	finish(t, l.naspTun(t, args...)).want(t, 0, "4242\n", "URI="+demoIdentity)
}

func TestProxyVariables(t *testing.T) {
	l := newLab(t, minimesh.Config{})
	run := func(flags ...string) result {
		args := append(append(l.enrolled(), flags...), "--", "sh", "-c", "echo ${http_proxy-none}")
		cmd := l.naspTun(t, args...)
		cmd.Env = append(cmd.Env, "http_proxy=http://127.0.0.1:1")
		return finish(t, cmd)
	}
	kept := run()
	kept.want(t, 0, "http://127.0.0.1:1\n")
	kept.wantError(t, 0, "nasp-tun: warning: http_proxy is set", "--no-proxy-env")
	unset := run("--no-proxy-env")
	unset.want(t, 0, "none\n")
	if unset.errors != "" {
		t.Errorf("nothing to warn of: %s", unset.errors)
	}
}

// An ordinary user, with /dev/net/tun as udev makes it, and as a kernel without
// udev does.
func TestRootless(t *testing.T) {
	needRoot(t)
	self := publicCopy(t)
	for _, tt := range []struct {
		name, mode string
		code       int
		out, error string
	}{
		{"the device is for all", "666", 0, "URI=" + demoIdentity, ""},
		{"the device is root's", "600", exitTUN, "", "hint: chmod 666 /dev/net/tun"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const script = `mount -t tmpfs none /dev/net && mknod -m $1 /dev/net/tun c 10 200 &&
				exec setpriv --reuid 4242 --regid 4242 --clear-groups env -u XDG_RUNTIME_DIR HOME=/nonexistent $2 demo`
			cmd := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", tt.mode, self)
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			r := finish(t, cmd)
			r.want(t, tt.code, tt.out)
			r.wantError(t, tt.code, tt.error)
		})
	}
}

// publicCopy is the program where every user can execute it.
func publicCopy(t *testing.T) string {
	t.Helper()
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "nasp-tun") // the name that TestMain looks for
	if err := os.WriteFile(path, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
