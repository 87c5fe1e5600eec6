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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A fileDNS puts our server first in resolv.conf and keeps those of the host after
// it: if we die, libc is refused at once on the loopback and asks the next.
type fileDNS struct {
	state  *State
	path   string
	server netip.Addr
	log    *slog.Logger
	events *os.File // of the file's directory

	mu       sync.Mutex
	ours     string // hash of what we wrote
	upstream []netip.AddrPort
	given    bool // others wrote it too often: it is theirs
}

// A ResolvConfError says why resolv.conf cannot be ours.
type ResolvConfError struct {
	Path string
	Hint string
	Err  error
}

func (e *ResolvConfError) Error() string { return fmt.Sprintf("replace %s: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *ResolvConfError) Unwrap() error { return e.Err }

func openFileDNS(s *State, path string, server netip.Addr, log *slog.Logger) (_ *fileDNS, err error) {
	f := &fileDNS{state: s, path: path, server: server, log: log}
	if f.events, err = watchDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := f.write(); err != nil {
		return nil, errors.Join(err, f.events.Close())
	}
	return f, nil
}

// write replaces what stands at the path, whatever that is, once the journal tells
// how to put it back.
func (f *fileDNS) write() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	was, err := save(f.path)
	if err != nil {
		return err
	}
	text := was.Content
	if was.Link != "" {
		// A link into nowhere is a host without servers.
		if text, err = readSmall(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if !f.state.mayReplace(f.path) {
		return fmt.Errorf("replace %s: the journal has another file of that name", f.path)
	}
	ours, upstream := resolvConfWith(text, f.server)
	if strings.HasPrefix(string(was.Content), resolvConfBanner) {
		// Ours of long ago, put back by somebody who had saved it.
		was.Content = resolvConfWithout(was.Content, f.server)
	}
	was.Ours = contentHash(ours)
	if err := f.state.note("resolv.conf", func(j *journal) {
		j.dropFile(f.path)
		j.Files = append(j.Files, was)
	}); err != nil {
		return err
	}
	mode, uid, gid := fs.FileMode(was.Mode), was.UID, was.GID
	if was.Link != "" || was.Missing {
		mode, uid, gid = 0o644, os.Geteuid(), os.Getegid()
	}
	if err := replaceFile(f.path, ours, mode, uid, gid); err != nil {
		undo := f.state.note("resolv.conf not written", func(j *journal) { j.dropFile(f.path) })
		return errors.Join(&ResolvConfError{Path: f.path, Hint: resolvConfHint(err), Err: err}, undo)
	}
	f.state.at("resolv.conf written")
	f.ours, f.upstream = was.Ours, upstream
	return nil
}

// mayReplace is false while the journal holds a file whose undoing has not come to an
// end: its content would be lost.
func (s *State) mayReplace(path string) bool {
	for _, f := range s.journal().Files {
		if f.Path != path {
			continue
		}
		now, err := save(path)
		// Ours stands: what the journal keeps is the host's, and must stay.
		if err != nil || now.Link == "" && !now.Missing && contentHash(now.Content) == f.Ours {
			return false
		}
	}
	return true
}

func resolvConfHint(err error) string {
	switch {
	case errors.Is(err, unix.EBUSY):
		return "it is a mount of its own, as in a container: use --dns=resolved, --dns=none or `nasp-tun exec`"
	case errors.Is(err, unix.EROFS):
		return "its directory is read-only: use --dns=resolved or --dns=none"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "it or its directory may not be changed (immutable? see lsattr): use --dns=none"
	}
	return ""
}

// resolvConfWith returns text with our server before all others, and the servers that
// stand in text. All else stays, but for the option that takes servers in turn: names
// of the mesh would be looked for elsewhere every other time.
func resolvConfWith(text []byte, server netip.Addr) (out []byte, upstream []netip.AddrPort) {
	head := resolvConfBanner + ": names of the mesh, and the host's servers after it.\n" +
		"# `nasp-tun cleanup` puts back what was here before.\n" +
		"nameserver " + server.String() + "\n"
	for _, s := range ParseResolvConf(text).Servers {
		if s.Addr().Unmap() != server {
			upstream = append(upstream, s)
		}
	}
	return append([]byte(head), resolvConfWithout(text, server)...), upstream
}

// resolvConfWithout returns text without what we write, and without the option.
func resolvConfWithout(text []byte, server netip.Addr) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, resolvConfBanner), strings.HasPrefix(line, "# `nasp-tun cleanup`"):
		case len(f) > 1 && f[0] == "nameserver" && f[1] == server.String():
		case len(f) > 1 && f[0] == "options" && slices.Contains(f, "rotate"):
			f = slices.DeleteFunc(f, func(o string) bool { return o == "rotate" })
			if len(f) > 1 {
				b.WriteString(strings.Join(f, " ") + "\n")
			}
		default:
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return []byte(b.String())
}

func (f *fileDNS) servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.upstream)
}

// close puts back what stood there before, if ours still does.
func (f *fileDNS) close() error {
	err := f.events.Close()
	did, undo := f.state.restoreFiles(false)
	for _, d := range did {
		f.log.Info("resolver undone", "did", d)
	}
	return errors.Join(err, undo)
}

// run puts our server back in front when others, a VPN or a DHCP client, have written
// the file: what they wrote is then what we put back at the end. If they do so again
// and again, they win.
func (f *fileDNS) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = f.events.SetReadDeadline(time.Unix(1, 0)) })()
	var recent []time.Time
	for {
		if err := nextChange(ctx, f.events); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch %s: %w", f.path, err)
		}
		f.mu.Lock()
		ours := f.ours
		f.mu.Unlock()
		now, err := save(f.path)
		if err == nil && now.Link == "" && contentHash(now.Content) == ours {
			continue
		}
		recent = dropOld(recent, time.Now().Add(-repairWindow))
		if len(recent) >= repairMost {
			f.giveUp()
			continue
		}
		recent = append(recent, time.Now())
		f.log.Warn("resolv.conf was written by others, putting our server first again")
		if err := f.write(); err != nil {
			f.log.Warn("resolver could not be put right", "err", err)
		}
	}
}

func (f *fileDNS) giveUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.given {
		f.given = true
		f.log.Warn("resolv.conf is written by others again and again: left to them, names of the mesh are lost")
	}
}

func (f *fileDNS) lost() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.given
}

// watchDirectory hears of files that appear in a directory, are replaced or written.
func watchDirectory(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_DELETE|unix.IN_ONLYDIR); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}
