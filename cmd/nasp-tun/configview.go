// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// configCommand is the group of verbs about settings.
func (a *app) configCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "config",
		Short: "Show the settings",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q of config", args[0])
			}
			return cmd.Help()
		},
	}
	view := &cobra.Command{
		Use:   "view",
		Short: "Print each effective setting and where it comes from",
		Long: `View takes the flags of exec, and prints what exec would work with: each
setting, its value, and its source (flag, environment, file or default).`,
		Args: cobra.NoArgs,
	}
	group.AddCommand(a.verb(view, func(*cobra.Command, []string) error {
		v := struct {
			versioned
			Settings []Setting `json:"settings"`
		}{v1, a.cfg.effective}
		return a.print(v, func(w io.Writer) {
			t := newTable(w, "SETTING", "VALUE", "SOURCE")
			for _, s := range v.Settings {
				t.row(s.Name, s.Value, s.Source)
			}
			t.flush()
		})
	}, enrolFlags, execFlags, observeFlags, outputFlag))
	return group
}

// flagTable writes the README's table of settings, in Markdown.
func flagTable(w io.Writer, fs *pflag.FlagSet) {
	markdownRow(w, "flag", "variable", "default", "meaning")
	markdownRow(w, "---", "---", "---", "---")
	fs.VisitAll(func(f *pflag.Flag) {
		kind, usage := pflag.UnquoteUsage(f)
		flag := "--" + f.Name
		if kind != "" {
			flag += " " + kind
		}
		def := ""
		if f.DefValue != "" && f.DefValue != "false" {
			def = "`" + f.DefValue + "`"
		}
		markdownRow(w, "`"+flag+"`", "`"+envName(f.Name)+"`", def, usage)
	})
}

// exitTable writes the README's table of exit codes.
func exitTable(w io.Writer) {
	markdownRow(w, "code", "meaning")
	markdownRow(w, "---", "---")
	for _, e := range exitMeanings {
		markdownRow(w, strconv.Itoa(e.code), e.meaning)
	}
}
