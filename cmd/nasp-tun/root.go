// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// command builds the tree of verbs.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "nasp-tun",
		Short: "Give a program an identity in an Istio mesh, without changing it",
		Long: `nasp-tun runs a program whose traffic enters an Istio mesh with a SPIFFE
identity of its own. The program is not changed and does not know.

  nasp-tun demo                       see it work: no cluster, nothing to set up
  nasp-tun exec --heimdall URL --token-file FILE -- curl http://echo.testing

Each flag can also be set by a variable, NASP_TUN_ and its name, or in
$XDG_CONFIG_HOME/nasp-tun/config.yaml, whose keys are the flags' long names.`,
		SilenceErrors: true, // report prints them, once
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return a.ended(cmd, nil, flagError(err))
	})
	fileFlag(&a.cfg, root.PersistentFlags())
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run a program in the mesh:"},
		&cobra.Group{ID: "look", Title: "Look into a running session:"},
	)
	root.AddCommand(
		a.execCommand(), a.demoCommand(),
		a.statusCommand(), a.servicesCommand(), a.explainCommand(),
		a.configCommand(), a.versionCommand(), a.demoClientCommand(),
	)
	return root
}

// verb finishes a command: its flags, and the rest of the configuration,
// which is complete before the verb begins.
func (a *app) verb(cmd *cobra.Command, run func(*cobra.Command, []string) error, groups ...flagGroup) *cobra.Command {
	cmd.Flags().SortFlags = false
	for _, add := range groups {
		add(&a.cfg, cmd.Flags())
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return a.ended(cmd, args, &usageError{err})
			}
			return nil
		}
	}
	a.complete(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := a.cfg.load(cmd.Flags())
		if err == nil {
			for _, name := range a.cfg.unknownVariables() {
				fmt.Fprintf(a.stderr, "nasp-tun: warning: %s is not a setting\n", name)
			}
			err = run(cmd, args)
		}
		return a.ended(cmd, args, err)
	}
	return cmd
}

// ended names the verb in an error. Where the exit code is CMD's, the error
// gets one that is not.
func (a *app) ended(cmd *cobra.Command, args []string, err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	if status, ok := interruption(err); ok {
		return &exitError{status: status}
	}
	err = fmt.Errorf("%s: %w", cmd.Name(), err)
	if cmd.Name() == "exec" || cmd.Name() == "demo" && len(args) > 0 {
		return asCommand(err)
	}
	return err
}

// complete tells the shell what may follow some flags. A flag that the verb does
// not have is an error of RegisterFlagCompletionFunc, and no matter.
func (a *app) complete(cmd *cobra.Command) {
	words := func(w ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(w, cobra.ShellCompDirectiveNoFileComp)
	}
	for flag, f := range map[string]cobra.CompletionFunc{
		"output": words("text", "json"), "outside": words("mesh", "allow"),
		"log-level":  words("debug", "info", "warn", "error"),
		"log-format": words("text", "json"), "access-log-format": words("text", "json"),
		"session": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, s := range sessions(sessionDirs(a.cfg.env)) {
				names = append(names, s.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, f)
	}
}
