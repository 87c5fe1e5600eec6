// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os"

	"github.com/nasp-tun/nasp-tun/netstack/host"
)

func main() {
	// The second stage of exec comes before flags, logging and signal
	// handlers: it is this program inside CMD's namespaces, about to become
	// CMD, and must leave no trace of itself in it.
	if host.Stage2(os.Args) {
		return
	}
	// Exit ends as CMD ended, by its signal if it was one.
	run(context.Background(), os.Args[1:], systemEnvironment(), os.Stdin, os.Stdout, os.Stderr).Exit()
}

// An app is one invocation of the program: its settings and its three files.
type app struct {
	cfg    Config
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// run executes one command line and returns how to end. Whatever went wrong is
// told here and nowhere else.
func run(ctx context.Context, args []string, env environment, stdin io.Reader, stdout, stderr io.Writer) host.ExitStatus {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	a.cfg.env = env
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.ExecuteContext(ctx))
}
