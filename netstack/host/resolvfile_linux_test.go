// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestResolvConfWith(t *testing.T) {
	const head = resolvConfBanner + ": names of the mesh, and the host's servers after it.\n# `nasp-tun cleanup` puts back what was here before.\nnameserver 127.77.0.53\n"
	for _, row := range []struct{ name, before, after, upstream string }{
		{"plain", "search a.example\nnameserver 192.0.2.53\n", "search a.example\nnameserver 192.0.2.53\n", "192.0.2.53:53"},
		{"no newline at the end", "nameserver 192.0.2.53", "nameserver 192.0.2.53\n", "192.0.2.53:53"},
		{"empty", "", "", "127.0.0.1:53"},
		{"servers in turn", "options ndots:2 rotate edns0\noptions rotate\nnameserver 192.0.2.53\n", "options ndots:2 edns0\nnameserver 192.0.2.53\n", "192.0.2.53:53"},
		{"what nobody knows stays", "# by hand\nsortlist 1.2.3.0\nnameserver ::1\n", "# by hand\nsortlist 1.2.3.0\nnameserver ::1\n", "[::1]:53"},
		{"ours, left by somebody's backup", head + "nameserver 192.0.2.53\n", "nameserver 192.0.2.53\n", "192.0.2.53:53"},
	} {
		out, upstream := resolvConfWith([]byte(row.before), StubAddr)
		if got := string(out); got != head+row.after {
			t.Errorf("%s: got\n%s", row.name, got)
		}
		if got := fmt.Sprint(upstream); got != "["+row.upstream+"]" {
			t.Errorf("%s: upstream %s", row.name, got)
		}
		// What is written is read back as what was there, behind us.
		if first := ParseResolvConf(out).Servers[0].Addr(); first != StubAddr {
			t.Errorf("%s: the first server is %v", row.name, first)
		}
	}
}

func FuzzResolvConfWith(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.53\noptions rotate\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		out, _ := resolvConfWith(text, StubAddr)
		if c := ParseResolvConf(out); c.Servers[0].Addr() != StubAddr || slices.Contains(c.Options, "rotate") {
			t.Errorf("%q became %q", text, out)
		}
	})
}

// fileState is all of a file that is to be as before.
func fileState(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	link, _ := os.Readlink(path)
	text, _ := os.ReadFile(path)
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%v %d:%d link %q %q", info.Mode(), st.Uid, st.Gid, link, text)
}

func openTestDNS(t *testing.T, s *State, path string, log *slog.Logger) *DNS {
	t.Helper()
	d, err := OpenDNS(t.Context(), DNSConfig{State: s, Mode: DNSResolvConf, Server: netip.AddrPortFrom(StubAddr, 53), ResolvConf: path, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestResolvConfFile(t *testing.T) {
	needRoot(t)
	for _, row := range []struct {
		name string
		make func(path string) error
	}{
		{"file", func(p string) error { return os.WriteFile(p, []byte("nameserver 192.0.2.53\n"), 0o640) }},
		{"another's file", func(p string) error {
			return errors.Join(os.WriteFile(p, []byte("x"), 0o600), os.Chown(p, 4242, 4243), os.Chmod(p, 0o604))
		}},
		{"link", func(p string) error {
			return errors.Join(os.WriteFile(p+".real", []byte("nameserver 192.0.2.53\n"), 0o644), os.Symlink("resolv.conf.real", p))
		}},
		{"link into nowhere", func(p string) error { return os.Symlink("../run/none", p) }},
		{"none", func(string) error { return nil }},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "resolv.conf")
			if err := row.make(path); err != nil {
				t.Fatal(err)
			}
			before := fileState(t, path)
			dir := t.TempDir()
			s := openTestState(t, dir, "test")
			d := openTestDNS(t, s, path, nil)
			if text, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(text), resolvConfBanner) {
				t.Errorf("%q, %v", text, err)
			}
			if _, err := openFileDNS(s, path, StubAddr, slog.New(slog.DiscardHandler)); err == nil {
				t.Error("it was replaced twice, and what stood before lost")
			}
			if err := d.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if after := fileState(t, path); after != before {
				t.Errorf("was %s\nis  %s", before, after)
			}
			if left, _ := filepath.Glob(path + newSuffix); left != nil || !s.journal().empty() {
				t.Errorf("left are %q and the journal %+v", left, s.journal())
			}
			// A crash leaves it to the clean-up, which spares what others wrote since.
			openTestDNS(t, s, path, nil).file.events.Close()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			theirs := []byte("nameserver 198.51.100.53\n")
			ours, _ := os.ReadFile(path)
			if err := os.WriteFile(path, theirs, 0o644); err != nil {
				t.Fatal(err)
			}
			again := openTestState(t, dir, "test")
			if did, err := again.restoreFiles(true); err != nil || !strings.Contains(fmt.Sprint(did), "alone") {
				t.Errorf("%q, %v", did, err)
			}
			if err := os.WriteFile(path, ours, 0o644); err != nil {
				t.Fatal(err)
			}
			if did, err := again.restoreFiles(false); err != nil || !strings.Contains(fmt.Sprint(did), "put back") {
				t.Errorf("%q, %v", did, err)
			}
			if after := fileState(t, path); after != before {
				t.Errorf("after a crash: was %s\nis  %s", before, after)
			}
		})
	}
}

// TestResolvConfOfLongAgo begins with a file of ours that no journal knows of: a VPN had
// saved it, and put it back after we had gone.
func TestResolvConfOfLongAgo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	const clean = "search a.example\nnameserver 192.0.2.53\n"
	stale, _ := resolvConfWith([]byte(clean), StubAddr)
	if err := os.WriteFile(path, stale, 0o644); err != nil {
		t.Fatal(err)
	}
	d := openTestDNS(t, openTestState(t, t.TempDir(), "test"), path, nil)
	if got := fmt.Sprint(d.Upstream()); got != "[192.0.2.53:53]" {
		t.Errorf("the host's servers are %s", got)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != clean {
		t.Errorf("%q, %v", text, err)
	}
}

func TestResolvConfWrittenByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(server string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".vpn", []byte("nameserver "+server+"\n"), 0o644), os.Rename(path+".vpn", path)); err != nil {
			t.Fatal(err)
		}
	}
	write("192.0.2.53")
	logged := make(logWaiter, 1000)
	d := openTestDNS(t, openTestState(t, t.TempDir(), "test"), path, slog.New(slog.NewTextHandler(logged, nil)))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for i := range repairMost {
		server := fmt.Sprintf("198.51.100.%d", i)
		write(server)
		logged.wait(t, "putting our server first again")
		for d.Upstream()[0].Addr().String() != server {
		}
		if text, err := os.ReadFile(path); err != nil || ParseResolvConf(text).Servers[0].Addr() != StubAddr {
			t.Errorf("%q, %v", text, err)
		}
	}
	write("203.0.113.1")
	logged.wait(t, "left to them")
	if _, warning := d.Mode(); warning == "" {
		t.Error("nothing is said of it")
	}
	stop()
	wg.Wait()
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(path); string(text) != "nameserver 203.0.113.1\n" {
		t.Errorf("theirs was taken away: %q", text)
	}
}

func TestResolvConfThatCannotBeReplaced(t *testing.T) {
	ownHost(t, "")
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "mount --bind "+path+" "+path) // as in a container
	defer sh(t, "umount "+path)
	before := fileState(t, path)
	s := openTestState(t, t.TempDir(), "test")
	_, err := OpenDNS(t.Context(), DNSConfig{State: s, Mode: DNSResolvConf, Server: netip.AddrPortFrom(StubAddr, 53), ResolvConf: path})
	var refused *ResolvConfError
	if !errors.As(err, &refused) || !strings.Contains(refused.Hint, "mount of its own") {
		t.Errorf("got %v", err)
	}
	if after := fileState(t, path); after != before || !s.journal().empty() {
		t.Errorf("was %s\nis  %s, %+v", before, after, s.journal())
	}
}

// TestResolvConfLookUp asks as libc does. It needs a process of its own, as what looks
// names up runs on other threads.
func TestResolvConfLookUp(t *testing.T) {
	needRoot(t)
	const inside = "NASP_TUN_TEST_LOOKUP"
	if os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestResolvConfLookUp$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if r := runCmd(t, cmd); r.status != 0 || !strings.Contains(r.out, "PASS: TestResolvConfLookUp") {
			t.Errorf("ended with %v\n%s\n%s", exitWords(r.status), r.out, r.err)
		}
		return
	}
	sh(t, "ip link set lo up")
	path := filepath.Join(t.TempDir(), "resolv.conf")
	d := openTestDNS(t, openTestState(t, t.TempDir(), "test"), path, nil)
	defer d.Close(t.Context())
	serveNames(t, netip.AddrPortFrom(StubAddr, 53).String(), answers(meshNames, nil))
	if err := d.Prove(t.Context(), "echo.testing", addrs("10.96.0.10")); err != nil {
		t.Error(err)
	}
	var proof *ProofError
	if err := d.Prove(t.Context(), "nobody.testing", addrs("10.96.0.10")); !errors.As(err, &proof) || proof.Layer != "name" || proof.Err == nil {
		t.Errorf("got %v", err)
	}
}
