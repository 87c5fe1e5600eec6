// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := openTestState(t, dir, "test")
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("made with %v, %v", info.Mode(), err)
	}
	if err := s.note("test", func(j *journal) { j.Routing = true }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "test.journal")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("journal: %v, %v", info, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// What is open to others is closed to them.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	again := openTestState(t, dir, "test")
	if !again.journal().Routing {
		t.Error("the journal was forgotten")
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("left open: %v, %v", info.Mode(), err)
	}
	if err := again.note("test", func(j *journal) { j.Routing = false }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "test.journal")); err == nil {
		t.Error("an empty journal stays")
	}
}

func TestStateNames(t *testing.T) {
	for _, name := range []string{"", "..", "a/b", "A", "-a", ".lock", strings.Repeat("a", 33), "a\n"} {
		if s, err := OpenState(t.TempDir(), name); err == nil {
			t.Errorf("%q was accepted", name)
			_ = s.Close()
		}
	}
}

func TestJournalIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "test.journal")
	if err := os.WriteFile(path, []byte("nasp-tun journal 1 sha256:00\n{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenState(dir, "test")
	var refused *JournalError
	if !errors.As(err, &refused) || !errors.Is(err, errCorrupt) {
		t.Fatalf("got %v", err)
	}
	if hint := refused.ByHand(); !strings.Contains(hint, "ip $f rule del pref $p protocol 155") || !strings.Contains(hint, "then remove "+path) {
		t.Errorf("hint: %s", hint)
	}
	if _, err := CleanUp(CleanUpConfig{Dir: dir, Name: "test"}); !errors.As(err, &refused) {
		t.Errorf("clean-up: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("it was taken away: %v", err)
	}
}

func TestSecondIsToldWhoHolds(t *testing.T) {
	ownHost(t, "")
	dir := t.TempDir()
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	first := exec.CommandContext(t.Context(), "/proc/self/exe", "mini-up", dir, resolv, "0", "hold")
	stdin, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the first says %q", lines.Text())
	}
	for what, try := range map[string]func() error{
		"start":    func() error { _, err := OpenState(dir, "test"); return err },
		"clean-up": func() error { _, err := CleanUp(CleanUpConfig{Dir: dir, Name: "test"}); return err },
	} {
		var held *HeldError
		if err := try(); !errors.As(err, &held) || held.PID != first.Process.Pid || !strings.Contains(held.Command, "mini-up "+dir) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	stdin.Close()
	for lines.Scan() {
	}
	if err := first.Wait(); err != nil {
		t.Error(err)
	}
	openTestState(t, dir, "test") // free again
}

func TestHolderThatIsAnother(t *testing.T) {
	s := &State{name: "test"}
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{
		"":                0,
		"x":               0,
		"1 1":             0, // its number was given out again
		"999999999 1":     0,
		ownPID(start):     os.Getpid(),
		ownPID(start + 1): 0,
	} {
		if got := s.holder(strings.NewReader(text)); got.PID != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestStateThatCannotBeWritten(t *testing.T) {
	ownHost(t, "")
	for _, row := range []struct {
		name, mount string
		want        error
	}{
		{"read-only", "ro", unix.EROFS},
		{"full", "size=4k,nr_inodes=2", unix.ENOSPC},
	} {
		t.Run(row.name, func(t *testing.T) {
			needRoot(t)
			ownHost(t, "")
			if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			sh(t, "mount -t tmpfs -o mode=700,"+row.mount+" none "+dir)
			defer sh(t, "umount "+dir)
			before := hostState(t)
			s, err := OpenState(dir, "test")
			if err == nil {
				defer s.Close()
				var c *Capture
				if c, err = OpenCapture(CaptureConfig{State: s}); err == nil {
					_ = c.Close()
				}
			}
			if !errors.Is(err, row.want) {
				t.Errorf("got %v", err)
			}
			if got := hostState(t); strings.Join(before, "\n") != strings.Join(got, "\n") {
				t.Error("the host is not as before")
			}
		})
	}
}

func ownPID(start uint64) string { return fmt.Sprintf("%d %d\n", os.Getpid(), start) }
