// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// apiVersion heads every JSON answer. Within it fields are added, and never
// renamed or removed.
const apiVersion = "nasp-tun/v1"

// versioned is embedded first in what is printed as JSON.
type versioned struct {
	APIVersion string `json:"apiVersion"`
}

var v1 = versioned{apiVersion}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// print writes an answer in the format asked for.
func (a *app) print(v any, text func(io.Writer)) error {
	if a.cfg.Client.Output == "json" {
		return writeJSON(a.stdout, v)
	}
	text(a.stdout)
	return nil
}

// A table is rows of columns, aligned.
type table struct{ tw *tabwriter.Writer }

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		// What comes from a mesh or a command line must not draw on the terminal.
		cells[i] = printable(c)
	}
	fmt.Fprintln(t.tw, strings.Join(cells, "\t"))
}

func (t *table) flush() { _ = t.tw.Flush() } // a closed pipe: nobody reads

// printable replaces control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

func markdownRow(w io.Writer, cells ...string) {
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}
