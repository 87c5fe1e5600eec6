// SPDX-License-Identifier: Apache-2.0

// Command heimdall lets machines outside a cluster join its mesh. It runs in
// the cluster and does two things: a controller keeps an access token for each
// WorkloadGroup that asks for one, and a server takes such a token and answers
// with what a laptop needs to join.
//
//	heimdall --namespaces external --tls-secret heimdall/heimdall-tls --lease-namespace heimdall
//
// The chart in heimdall/chart installs it with the rights that it needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

// Exit codes: what a supervisor can do about them differs.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(command(ctx, os.Args[1:], os.Stderr))
}

// command executes one command line and returns the exit code.
func command(ctx context.Context, args []string, stderr io.Writer) int {
	cfg, err := parse(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "heimdall: %v\n", err)
		return exitUsage
	}
	if err := run(ctx, cfg, stderr); err != nil {
		fmt.Fprintf(stderr, "heimdall: %v\n", err)
		return exitFailure
	}
	return 0
}
