// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A session is a running nasp-tun that can be asked: its socket lies in a
// folder of its owner as NAME-PID.sock. The socket is all there is on disk. A
// process that dies leaves the file behind, but nobody who accepts; that is
// how a dead one is told, since process ids come round again.
type session struct {
	Name string
	PID  int
	path string
}

func (s session) String() string { return fmt.Sprintf("%s (pid %d)", s.Name, s.PID) }

const socketSuffix = ".sock"

// maxSocketPath is the length of sun_path less its final zero.
const maxSocketPath = 107

func (s session) fileName() string {
	return s.Name + "-" + strconv.Itoa(s.PID) + socketSuffix
}

// parseSession reads a session from the path of its socket.
func parseSession(path string) (session, bool) {
	base, ok := strings.CutSuffix(filepath.Base(path), socketSuffix)
	if !ok {
		return session{}, false
	}
	i := strings.LastIndexByte(base, '-')
	if i <= 0 {
		return session{}, false
	}
	pid, err := strconv.Atoi(base[i+1:])
	if err != nil || pid <= 0 {
		return session{}, false
	}
	return session{Name: base[:i], PID: pid, path: path}, true
}

// A noSessionError says that no session answers.
type noSessionError struct{ wanted string }

func (e *noSessionError) Error() string {
	if e.wanted != "" {
		return fmt.Sprintf("no session %q runs", e.wanted)
	}
	return "no session runs"
}

// A manySessionsError lists the sessions of which one must be chosen.
type manySessionsError struct{ sessions []session }

func (e *manySessionsError) Error() string {
	names := make([]string, len(e.sessions))
	for i, s := range e.sessions {
		names[i] = s.String()
	}
	return "several sessions run: " + strings.Join(names, ", ")
}

// sessionDirs are the folders where sockets of this user can lie, the
// preferred one first.
func sessionDirs(env environment) []string {
	// Under sudo -E the variable is that of another user.
	if d := env.runtimeDir(); filepath.IsAbs(d) && ownFolder(d) {
		return []string{filepath.Join(d, "nasp-tun")}
	}
	temp := filepath.Join(os.TempDir(), fmt.Sprintf("nasp-tun-%d", os.Geteuid()))
	if os.Geteuid() == 0 {
		return []string{"/run/nasp-tun", temp} // a container's /run may be read-only
	}
	return []string{temp}
}

// listenSession opens the socket of this process in the first folder that can
// hold it. The listener removes its file when it is closed.
func listenSession(dirs []string, name string) (net.Listener, session, error) {
	s := session{Name: name, PID: os.Getpid()}
	var errs []error
	for _, dir := range dirs {
		s.path = filepath.Join(dir, s.fileName())
		l, err := listenIn(dir, s.path)
		if err == nil {
			return l, s, nil
		}
		errs = append(errs, err)
	}
	return nil, session{}, fmt.Errorf("open the session's socket: %w", errors.Join(errs...))
}

func listenIn(dir, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%s: longer than a socket's address", path)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	prune(dir)
	return net.Listen("unix", path)
}

// prune removes the sockets that nobody listens at. The folder is locked by
// the caller, so that no socket is between its creation and its listen, when
// it refuses connections too.
func prune(dir string) {
	for _, s := range socketsIn(dir) {
		c, err := dialSocket(context.Background(), s.path)
		if err == nil {
			_ = c.Close()
			continue
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(s.path)
		}
	}
}

func socketsIn(dir string) []session {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // it does not exist, or is not ours to read
	}
	var out []session
	for _, e := range entries {
		if s, ok := parseSession(filepath.Join(dir, e.Name())); ok && e.Type()&fs.ModeSocket != 0 {
			out = append(out, s)
		}
	}
	return out
}

// sessions lists what runs, and removes what does not.
func sessions(dirs []string) []session {
	var out []session
	for _, dir := range dirs {
		unlock, err := lockDir(dir)
		if err != nil {
			continue
		}
		prune(dir)
		unlock()
		out = append(out, socketsIn(dir)...)
	}
	return out
}

// chooseSession finds the one session that is meant.
func chooseSession(dirs []string, wanted string) (session, error) {
	var fit []session
	for _, s := range sessions(dirs) {
		if wanted == "" || wanted == s.Name || wanted == strconv.Itoa(s.PID) || wanted+socketSuffix == s.fileName() {
			fit = append(fit, s)
		}
	}
	switch len(fit) {
	case 0:
		return session{}, &noSessionError{wanted}
	case 1:
		return fit[0], nil
	}
	return session{}, &manySessionsError{fit}
}

// socketTimeout bounds a connect to a local socket, whose owner may be stopped
// with its backlog full.
const socketTimeout = 2 * time.Second

func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: socketTimeout} //rule:allow a socket of this machine's file system
	return d.DialContext(ctx, "unix", path)
}

// sessionName makes a session's name of a command's.
func sessionName(command string) string {
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune(sessionNameChars, r) {
			return r
		}
		return '_'
	}, filepath.Base(command))
	name = strings.TrimLeft(name, ".")
	return cmp.Or(name[:min(len(name), maxSessionName)], "session")
}
