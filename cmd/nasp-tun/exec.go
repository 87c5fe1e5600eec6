// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/nasp-tun/nasp-tun/netstack/host"
)

func (a *app) execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec [flags] -- CMD [ARGS]",
		Short: "Run a program in the mesh; nothing on the host changes",
		Long: `Exec runs CMD in a network of its own, all of whose traffic enters a TUN. What
belongs to the mesh leaves as Istio mutual TLS with the workload's identity; the
rest passes through from the host's own sockets. CMD never runs outside.

Exec ends as CMD ends. 125 means that CMD was not started, with the reason on
standard error; 126 that CMD cannot be executed, 127 that there is no such CMD.`,
		Example: `  nasp-tun exec --heimdall https://heimdall.example.com/config --token-file token -- curl http://echo.testing
  nasp-tun exec --istiod gateway.example.com:15012 --istiod-ca root-cert.pem --istio-token-file istio-token \
      --namespace external --service-account laptop -- ./my-program`,
		GroupID: "run",
		Args:    commandGiven,
	}
	cmd.Flags().SetInterspersed(false) // the flags after CMD are CMD's
	return a.verb(cmd, func(cmd *cobra.Command, args []string) error {
		return a.runTunnel(cmd.Context(), &a.cfg, args)
	}, enrolFlags, execFlags, observeFlags)
}

func commandGiven(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("no CMD is given")
	}
	return nil
}

// runTunnel runs one program in the mesh, and ends as it ended.
func (a *app) runTunnel(ctx context.Context, cfg *Config, args []string) error {
	logs, err := openLogs(&cfg.Observe, a.stderr)
	if err != nil {
		return err
	}
	defer logs.close()
	t, err := newTunnel(cfg, logs, a.stdin, a.stderr, args)
	if err != nil {
		return err
	}
	status, err := t.run(ctx)
	if err != nil {
		return err
	}
	return &exitError{status: status}
}

// asCommand gives an error of a verb that runs CMD the status that is customary
// for programs of this kind (env, timeout, docker run): every code below 125
// belongs to CMD.
func asCommand(err error) error {
	status := host.ExitStatus{Code: exitSetUp}
	var refused *host.ExecError
	if errors.As(err, &refused) && refused.Code != 0 {
		status.Code = refused.Code
	}
	return &exitError{status: status, err: err}
}

// interruption returns how to end when a signal ended the set-up: as the signal
// would have it, and without a word, since the user knows.
func interruption(err error) (host.ExitStatus, bool) {
	var interrupted *host.Interrupted
	if errors.As(err, &interrupted) {
		return interrupted.Status(), true
	}
	var ended *endedError
	if errors.As(err, &ended) && ended.status.Signal != 0 {
		return ended.status, true
	}
	return host.ExitStatus{}, false
}
