// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// The test binary is nasp-tun too: tests start it under that name, exec starts
// it again as its second stage, and demo as the programs that it shows.
func TestMain(m *testing.M) {
	if host.Stage2(os.Args) {
		return
	}
	if len(os.Args) > 1 && os.Args[1] == demoClientVerb {
		main()
	}
	testscript.Main(leakChecked{m}, map[string]func(){"nasp-tun": main})
}

// leakChecked fails a run of tests that leaves goroutines behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

func TestScripts(t *testing.T) {
	scripts(t, filepath.Join("testdata", "script"))
}

// scripts runs the scripts of a folder, each with a home and a folder for
// sockets of its own.
func scripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir:           dir,
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			runtime, err := os.MkdirTemp("", "nt") // short, for sockets
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(runtime) })
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("XDG_RUNTIME_DIR", runtime)
			return os.MkdirAll(filepath.Join(home, ".config", "nasp-tun"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a command and compares its exit code, which the script's own
// "exec" cannot: exits CODE CMD [ARGS].
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE CMD [ARGS]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("got exit code %d, want %d", got, want)
	}
}
