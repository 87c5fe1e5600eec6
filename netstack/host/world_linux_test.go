// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// someUser is in no passwd: nobody else's files or limits come into play.
const someUser = "4242"

// needRoot skips for a developer without root, and fails where the machine has
// promised it.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NASP_TUN_NETNS") == "require" {
		t.Fatal("NASP_TUN_NETNS=require, but not root")
	}
	t.Skip("needs root to make a world of its own")
}

// A world is a mount namespace of its own for a shell script, so that nothing of the
// host changes. In it /dev/net/tun is for all, and the script sees
//
//	$X     this binary, executable for everybody
//	$EXEC  a mini-exec, as the user that the world is for
//	$AS    what makes a command that user's
type world struct {
	name string
	as   string
}

var worlds = []world{
	{"root", ""},
	{"rootless", "setpriv --reuid " + someUser + " --regid " + someUser + " --clear-groups "},
}

// inWorlds runs a test for root and for an ordinary user.
func inWorlds(t *testing.T, test func(t *testing.T, w world)) {
	needRoot(t)
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) { test(t, w) })
	}
}

const prelude = `
mount -t tmpfs none /mnt
: >/mnt/x
mount --bind "$EXE" /mnt/x
mount -t tmpfs none /dev/net
mknod -m 666 /dev/net/tun c 10 200
unset EXE
if test -n "${GOCOVERDIR-}"; then # go test -cover: other users report too
	chmod 777 "$GOCOVERDIR"
	mkdir /mnt/cover
	mount --bind "$GOCOVERDIR" /mnt/cover
	export GOCOVERDIR=/mnt/cover
fi
`

// command makes the command that runs script.
func (w world) command(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The sh that runs the prelude becomes the one that runs the script.
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", prelude+`exec sh -euc "$SCRIPT"`)
	cmd.Env = append(os.Environ(), "EXE="+exe, "SCRIPT="+script, "X=/mnt/x", "AS="+w.as, "EXEC="+w.as+"/mnt/x mini-exec")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Dir = "/"
	return cmd
}

// A result is how a script ended and what it said.
type result struct {
	out, err string
	status   syscall.WaitStatus
}

// run runs script to its end.
func (w world) run(t *testing.T, script string) result {
	t.Helper()
	return runCmd(t, w.command(t, script))
}

func runCmd(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{strings.TrimSpace(out.String()), strings.TrimSpace(errs.String()), cmd.ProcessState.Sys().(syscall.WaitStatus)}
}

// ok runs a script that must succeed and returns what it printed.
func (w world) ok(t *testing.T, script string) string {
	t.Helper()
	r := w.run(t, script)
	if r.status != 0 {
		t.Fatalf("%s\nended with %v\n%s\n%s", script, exitWords(r.status), r.out, r.err)
	}
	return r.out
}

func exitWords(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return ExitStatus{Signal: ws.Signal()}.String()
	}
	return ExitStatus{Code: ws.ExitStatus()}.String()
}
