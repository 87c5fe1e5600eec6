// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxState bounds what is read of our own files: the map of a full virtual range is
// some megabytes.
const maxState = 64 << 20

// sessionName is what a session may be called: it becomes part of file names.
var sessionName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// A State is the directory in which a session keeps what must outlive it, and the
// lock that only one process holds. It is safe for concurrent use.
type State struct {
	name string
	path string
	root *os.Root
	lock *os.File

	mu   sync.Mutex
	body journal

	// step, if set, is called at each moment at which the host or the journal has
	// just changed or is about to: the tests die there.
	step func(what string)
}

// A HeldError says that another process holds a session.
type HeldError struct {
	Name    string
	PID     int    // 0: unknown
	Command string // of the process; empty: unknown
}

func (e *HeldError) Error() string {
	switch {
	case e.PID == 0:
		return fmt.Sprintf("session %q is in use by another process", e.Name)
	case e.Command == "":
		return fmt.Sprintf("session %q is in use by process %d", e.Name, e.PID)
	}
	return fmt.Sprintf("session %q is in use by process %d (%s)", e.Name, e.PID, e.Command)
}

// OpenState makes the directory, for us alone, takes the lock of the session called
// name and reads its journal. A living holder yields a [*HeldError]; a journal that
// cannot be trusted, a [*JournalError].
func OpenState(dir, name string) (_ *State, err error) {
	if !sessionName.MatchString(name) {
		return nil, fmt.Errorf("session name %q: want up to 32 of a-z, 0-9 and -", name)
	}
	s := &State{name: name, path: dir}
	if err := s.openDir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	s.body = journal{Name: name}
	text, err := s.read(s.journalName())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		s.body, err = decodeJournal(name, text)
	}
	if err != nil {
		return nil, &JournalError{Path: filepath.Join(dir, s.journalName()), Err: err}
	}
	return s, nil
}

func (s *State) openDir() error {
	if err := os.MkdirAll(s.path, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	root, err := os.OpenRoot(s.path)
	if err != nil {
		return fmt.Errorf("open state directory: %w", err)
	}
	s.root = root
	// Whoever could write here could have us replace files with what they like.
	var st unix.Stat_t
	if err := unix.Stat(s.path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: s.path, Err: err}
	}
	if int(st.Uid) != os.Geteuid() {
		_ = root.Close()
		s.root = nil
		return fmt.Errorf("state directory %s: owned by user %d, not by us", s.path, st.Uid)
	}
	if st.Mode&0o077 != 0 {
		if err := root.Chmod(".", 0o700); err != nil {
			return fmt.Errorf("close state directory to others: %w", err)
		}
	}
	return nil
}

func (s *State) journalName() string { return s.name + ".journal" }

// takeLock locks a file that is never removed, so that all who lock it lock the same.
// The lock goes with the process, however that ends; who holds it is written inside.
func (s *State) takeLock() error {
	f, err := s.root.OpenFile(s.name+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	s.lock = f
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return s.holder(f)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write lock: %w", err)
	}
	start, _ := startTime(os.Getpid())
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d %d\n", os.Getpid(), start), 0); err != nil {
		return fmt.Errorf("write lock: %w", err)
	}
	return nil
}

// holder says who holds the lock. The number of a process that has ended may be
// another's by now: its start time tells.
func (s *State) holder(f io.Reader) *HeldError {
	held := &HeldError{Name: s.name}
	text, _ := io.ReadAll(io.LimitReader(f, 64))
	var pid int
	var start uint64
	if n, _ := fmt.Sscanf(string(text), "%d %d", &pid, &start); n != 2 {
		return held
	}
	if now, err := startTime(pid); err != nil || now != start {
		return held
	}
	held.PID = pid
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil {
		held.Command = strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	return held
}

// startTime returns when a process started, in ticks since the machine did: field 22
// of proc_pid_stat(5), whose second may hold anything between its parentheses.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	const afterName = 22 - 3
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) <= afterName {
		return 0, fmt.Errorf("stat of process %d: %d fields", pid, len(f))
	}
	return strconv.ParseUint(f[afterName], 10, 64)
}

// Close gives the session up. What is in the journal stays for the next.
func (s *State) Close() error {
	var errs []error
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if s.root != nil {
		errs = append(errs, s.root.Close())
	}
	return errors.Join(errs...)
}

// at tells the tests where we are.
func (s *State) at(what string) {
	if s.step != nil {
		s.step(what)
	}
}

// journal returns what stands in the journal now.
func (s *State) journal() journal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body
}

// note changes the journal, and returns when the change is on the disk. What has
// nothing more to say is removed.
func (s *State) note(what string, change func(*journal)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.body
	next.Files = append([]savedFile(nil), next.Files...)
	change(&next)
	s.at("journal before " + what)
	var err error
	if next.empty() {
		err = s.remove(s.journalName())
	} else {
		var text []byte
		if text, err = next.encode(); err == nil {
			err = s.write(s.journalName(), text)
		}
	}
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	s.body = next
	s.at("journal after " + what)
	return nil
}

// read returns a file of the directory.
func (s *State) read(name string) ([]byte, error) {
	f, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxState))
}

// write replaces a file of the directory: after a crash, even of the machine, there
// is the old one or the new one.
func (s *State) write(name string, text []byte) error {
	temporary := name + ".new"
	f, err := s.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		s.at("write " + name)
		err = s.root.Rename(temporary, name)
	}
	if err != nil {
		_ = s.root.Remove(temporary)
		return err
	}
	return s.syncDir()
}

func (s *State) remove(name string) error {
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.syncDir()
}

func (s *State) syncDir() error {
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
