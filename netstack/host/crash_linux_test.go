// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// miniUp is a small `nasp-tun up`: it starts, changes twice and stops, and dies at the
// moment given, the first being 1. It prints what it has come to.
//
//	mini-up DIR RESOLV.CONF MOMENT [hold]
func miniUp(args []string) int {
	moment, err := strconv.Atoi(args[2])
	if err == nil {
		err = liveUp(args[0], args[1], moment, len(args) > 3)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func liveUp(dir, resolv string, moment int, hold bool) error {
	s, err := OpenState(dir, "test")
	if err != nil {
		return err
	}
	s.step = func(what string) {
		if moment--; moment == 0 {
			fmt.Println("dies at", what)
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	c, err := OpenCapture(CaptureConfig{State: s})
	if err != nil {
		return err
	}
	if err := c.Apply(addrs("10.96.0.10", "fd00:10:96::10")); err != nil {
		return err
	}
	d, err := upFile(s, resolv)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if hold {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends
	}
	if err := c.Apply(addrs("10.96.0.10", "10.96.0.11", "fd00:10:96::10")); err != nil {
		return err
	}
	if err := c.Apply(addrs("10.96.0.10", "fd00:10:96::10")); err != nil {
		return err
	}
	fmt.Println("stopping")
	return errors.Join(d.close(), c.Close(), s.Close())
}

// runMiniUp runs a mini-up in the test's network namespace.
func runMiniUp(t *testing.T, dir, resolv string, moment int) (out string, died bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "mini-up", dir, resolv, strconv.Itoa(moment))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.String(), false
	case errors.As(err, &exit) && strings.Contains(exit.Error(), "killed"):
		return stdout.String(), true
	}
	t.Fatalf("moment %d: %v\n%s%s", moment, err, stdout.String(), stderr.String())
	return "", false
}

// TestCrash kills a session at each moment of its life, and then cleans up, or lets the
// next session live and stop: the host must be as it was. And from the moment at which
// the session was ready to that at which it began to stop, no packet to the mesh may
// leave by the host's own route, neither when the session has died nor when the next is
// starting.
func TestCrash(t *testing.T) {
	ownHost(t, "")
	dir := t.TempDir()
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	look := func() []string {
		text, err := os.ReadFile(resolv)
		if err != nil {
			t.Fatal(err)
		}
		return append(hostState(t), string(text))
	}
	state := filepath.Join(dir, "state")
	before := look()
	moment := 1
	for ; ; moment++ {
		out, died := runMiniUp(t, state, resolv, moment)
		if !died {
			break
		}
		if strings.Contains(out, "ready") && !strings.Contains(out, "stopping") {
			for _, a := range addrs("10.96.0.10", "fd00:10:96::10") {
				if got := way(t, a, 0); got != "no route to host" {
					t.Errorf("%s: then a packet to %v goes to %s", out, a, got)
				}
				if got := way(t, a, MarkOwn); got != "up0" {
					t.Errorf("%s: then a marked packet to %v goes to %s", out, a, got)
				}
			}
		}
		if moment%2 == 0 {
			if next, died := runMiniUp(t, state, resolv, 0); died {
				t.Fatalf("%s: the next session died: %s", out, next)
			}
		} else {
			if _, err := CleanUp(CleanUpConfig{Dir: state, Name: "test"}); err != nil {
				t.Errorf("%s: clean up: %v", out, err)
			}
		}
		if diff := cmp.Diff(before, look()); diff != "" {
			t.Fatalf("%s: the host is not as before (-before +after):\n%s", out, diff)
		}
		if _, err := os.Stat(filepath.Join(state, "test.journal")); err == nil {
			t.Fatalf("%s: the journal is still there", out)
		}
	}
	t.Logf("killed at %d moments", moment-1)
	if moment < 30 {
		t.Errorf("a session has only %d moments", moment)
	}
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Errorf("after a quiet life the host is not as before (-before +after):\n%s", diff)
	}
}

// TestRestartLeaksNothing follows a crash: the clean-up after it and the next start
// keep what refuses packets to the mesh until the new session's own routes stand.
func TestRestartLeaksNothing(t *testing.T) {
	ownHost(t, "")
	before := hostState(t)
	dir := t.TempDir()
	ways := func(want string) {
		t.Helper()
		for _, a := range []string{"10.96.0.10", "fd00:10:96::10"} {
			if got := way(t, addrs(a)[0], 0); got != want {
				t.Errorf("a packet to %s goes to %s, want %s", a, got, want)
			}
		}
	}
	crash := func() {
		t.Helper()
		s := openTestState(t, dir, "test")
		c, err := OpenCapture(CaptureConfig{State: s})
		if err != nil {
			t.Fatal(err)
		}
		if c.Status().Inherited {
			ways("no route to host")
		}
		if err := c.Apply(addrs("10.96.0.10", "fd00:10:96::10")); err != nil {
			t.Fatal(err)
		}
		ways("nasp0")
		if err := errors.Join(c.Leave(), s.Close()); err != nil {
			t.Fatal(err)
		}
		ways("no route to host")
	}
	crash()
	dry, err := CleanUp(CleanUpConfig{Dir: dir, Name: "test", DryRun: true})
	if err != nil {
		t.Error(err)
	}
	if did, err := CleanUp(CleanUpConfig{Dir: dir, Name: "test", KeepRoutes: true}); err != nil || len(did) > 0 {
		t.Errorf("did %q, %v", did, err)
	}
	ways("no route to host")
	crash()
	did, err := CleanUp(CleanUpConfig{Dir: dir, Name: "test"})
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(did, dry); diff != "" || len(did) != 7 {
		t.Errorf("a dry run says otherwise than what was done (-done +said):\n%s\n%q", diff, did)
	}
	ways("up0")
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Error(diff)
	}
}

// TestCleanUpTakesOnlyOurs sets rules and routes of others beside ours.
func TestCleanUpTakesOnlyOurs(t *testing.T) {
	ownHost(t, `for f in -4 -6; do ip $f rule add pref 88 lookup 7777; ip $f rule add pref 92 fwmark 1 lookup 99 protocol 155; done
		ip route add 10.96.0.10/32 dev up0 table 99 proto 155; ip -6 route add unreachable fd00:10:97::/64 table 7778`)
	before := hostState(t)
	// As after a crash, with a route of somebody else in our table, and a rule between ours.
	sh(t, `for f in -4 -6; do ip $f rule add pref 91 nop protocol 155; ip $f rule add pref 90 iif lo lookup 7777 protocol 155; ip $f rule add pref 90 iif lo lookup 7777 uidrange 1-1 protocol 155; done
		ip route add unreachable 10.96.0.10/32 table 7777 proto 155 metric 4294967294`)
	sh(t, "ip rule add pref 90 lookup 44; ip route add 10.96.0.99/32 dev up0 table 7777 proto 99")
	if _, err := CleanUp(CleanUpConfig{Dir: t.TempDir(), Name: "test"}); err != nil {
		t.Error(err)
	}
	sh(t, "ip rule del pref 90 lookup 44; ip route del 10.96.0.99/32 dev up0 table 7777 proto 99")
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Error(diff)
	}
}

func upFile(s *State, path string) (*fileDNS, error) {
	return openFileDNS(s, path, addrs("127.77.0.53")[0], slog.New(slog.DiscardHandler))
}
