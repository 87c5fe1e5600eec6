// SPDX-License-Identifier: Apache-2.0

package house

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/licences.md")

// marks finds a licence by a phrase that its text alone has.
var marks = []struct{ name, phrase string }{
	{"Apache-2.0", "Apache License"},
	{"MPL-2.0", "Mozilla Public License"},
	{"BSD-3-Clause", "Neither the name"},
	{"BSD-2-Clause", "Redistributions of source code must retain"},
	{"ISC", "Permission to use, copy, modify, and/or distribute"},
	{"ISC", "Permission to use, copy, modify, and distribute this software"},
	{"MIT", "Permission is hereby granted, free of charge"},
}

// free are the licences under which a program may link a library and stay
// under its own.
var free = []string{"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC"}

// TestLicences lists what is linked into the programs, and under which
// licence, in docs/licences.md.
func TestLicences(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Licences of what is linked\n\nWritten by `go test ./scripts/house -update`.\n\n| module | licence |\n|---|---|\n")
	for _, m := range linked(t) {
		name := licence(t, m.Dir)
		if !slices.Contains(free, name) {
			t.Errorf("%s: licence %q is not one that we may link", m.Path, name)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", m.Path, name)
	}
	file := filepath.FromSlash("../../docs/licences.md")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Error("docs/licences.md is out of date: go test ./scripts/house -update")
	}
}

type linkedModule struct{ Path, Dir string }

func linked(t *testing.T) []linkedModule {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=Module", "./cmd/...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]linkedModule{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct{ Module *linkedModule }
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Module != nil && p.Module.Path+"/" != module {
			seen[p.Module.Path] = *p.Module
		}
	}
	all := make([]linkedModule, 0, len(seen))
	for _, m := range seen {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b linkedModule) int { return strings.Compare(a.Path, b.Path) })
	return all
}

func licence(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "LICEN[SC]E*"))
	if err != nil || len(files) == 0 {
		return "none found"
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	flat := strings.Join(strings.Fields(string(text)), " ")
	for _, m := range marks {
		if strings.Contains(flat, m.phrase) {
			return m.name
		}
	}
	return "unknown"
}
