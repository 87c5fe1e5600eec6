// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Lab is the lab of one checkout. It is not safe for concurrent use; other
// programs are kept out by a lock.
type Lab struct {
	root  string // of the checkout
	out   io.Writer
	begun time.Time
	lock  *os.File
	state state
	bins  binaries
	api   *API
}

// state is what exists because the lab made it.
type state struct {
	Namespaces []string
	Processes  []*process
}

// Open reads the state of the lab of the checkout that holds the working
// directory. Progress is written to out.
func Open(out io.Writer) (*Lab, error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	l := &Lab{root: root, out: out, begun: time.Now()}
	if err := os.MkdirAll(l.cache(), 0o755); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(l.run("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &l.state); err != nil {
		return nil, fmt.Errorf("read %s: %w", l.run("state.json"), err)
	}
	return l, nil
}

// Lock keeps other programs from changing the lab until Unlock.
func (l *Lab) Lock() error {
	f, err := os.OpenFile(l.cache("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("lock the lab: another program changes it: %w", err)
	}
	l.lock = f
	return nil
}

// Unlock ends what Lock began.
func (l *Lab) Unlock() { l.lock.Close() }

func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module github.com/nasp-tun/nasp-tun\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("not inside a checkout of nasp-tun")
		}
	}
}

// Root is the checkout's folder.
func (l *Lab) Root() string { return l.root }

func (l *Lab) cache(elem ...string) string {
	return filepath.Join(append([]string{l.root, ".cache", "lab"}, elem...)...)
}

// run names a file that lives as long as the lab.
func (l *Lab) run(elem ...string) string {
	return filepath.Join(append([]string{l.cache("run")}, elem...)...)
}

// LogFile names the file that holds the output of a process.
func (l *Lab) LogFile(name string) string { return l.cache("log", name+".log") }

func (l *Lab) save() error {
	b, err := json.MarshalIndent(l.state, "", " ")
	if err != nil {
		return err
	}
	tmp := l.run("state.json.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, l.run("state.json"))
}

// reset makes the folders of a new lab, without the logs of the last one.
func (l *Lab) reset() error {
	if err := os.RemoveAll(l.cache("log")); err != nil {
		return err
	}
	if err := os.MkdirAll(l.cache("log"), 0o755); err != nil {
		return err
	}
	return os.MkdirAll(l.run(), 0o755)
}

// say prints a line of progress.
func (l *Lab) say(format string, args ...any) {
	fmt.Fprintf(l.out, "lab: %4ds  %s\n", int(time.Since(l.begun).Seconds()), fmt.Sprintf(format, args...))
}

const pollEvery = 100 * time.Millisecond

// Poll tries until it is without error or the time has passed.
func Poll(ctx context.Context, limit time.Duration, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("wait %v for %s: %w", limit, what, err)
		}
	}
}
