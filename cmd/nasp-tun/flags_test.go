// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the README's table and the scripts' expectations")

// The README's tables are made from the program itself.
func TestReadmeTables(t *testing.T) {
	path := filepath.Join("..", "..", "README.md")
	for _, tt := range []struct {
		name  string
		write func(io.Writer)
	}{
		{"flags", func(w io.Writer) { flagTable(w, allFlags(&Config{})) }},
		{"exits", exitTable},
		{"reasons", reasonTable},
		{"metrics", metricTable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin, end := "<!-- "+tt.name+":begin -->\n", "<!-- "+tt.name+":end -->"
			readme, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			before, rest, ok := strings.Cut(string(readme), begin)
			got, after, closed := strings.Cut(rest, end)
			if !ok || !closed {
				t.Fatalf("%s has no %q ... %q", path, begin, end)
			}
			var b strings.Builder
			tt.write(&b)
			if *update {
				text := before + begin + b.String() + end + after
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(b.String(), got); diff != "" {
				t.Errorf("the table is old (go test ./cmd/nasp-tun -run Readme -update):\n%s", diff)
			}
		})
	}
}

// A flag of a verb that is missing from allFlags would have no key in the file
// and no row in the table.
func TestEveryFlagIsASetting(t *testing.T) {
	known := allFlags(&Config{})
	for _, cmd := range new(app).command().Commands() {
		if cmd.Hidden {
			continue
		}
		for _, f := range flagNames(cmd) {
			if f != "help" && f != "serve" && known.Lookup(f) == nil {
				t.Errorf("%s --%s is not in allFlags", cmd.Name(), f)
			}
		}
	}
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}
