// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"slices"
	"strings"
)

// withoutResolve takes the source `resolve` off the hosts line of an nsswitch.conf.
// nss-resolve before systemd 247 asks over D-Bus, whose socket programs need for
// other things, so hiding a directory does not keep it from the host's names. All
// other sources stay as they are; dns is put in if that leaves none.
func withoutResolve(text []byte) (_ []byte, changed bool) {
	var out []byte
	for line := range bytes.Lines(text) {
		if edited, ok := editHosts(string(line)); ok {
			out, changed = append(out, edited...), true
			continue
		}
		out = append(out, line...)
	}
	return out, changed
}

// editHosts edits one line, if it is the hosts line and names resolve.
func editHosts(line string) (string, bool) {
	rule, comment, commented := strings.Cut(strings.TrimRight(line, "\n"), "#")
	database, sources, ok := strings.Cut(rule, ":")
	if !ok || strings.TrimSpace(database) != "hosts" {
		return "", false
	}
	// An action may be written without a space before it: resolve[!UNAVAIL=return].
	fields := strings.Fields(strings.ReplaceAll(strings.ReplaceAll(sources, "[", " ["), "]", "] "))
	var kept []string
	found, skipping, inAction := false, false, false
	for _, f := range fields {
		action := inAction || strings.HasPrefix(f, "[")
		if action {
			inAction = !strings.HasSuffix(f, "]")
		} else {
			skipping = f == "resolve"
			found = found || skipping
		}
		if !skipping {
			kept = append(kept, f)
		}
	}
	if !found {
		return "", false
	}
	if !slices.Contains(kept, "dns") {
		kept = append(kept, "dns")
	}
	line = "hosts: " + strings.Join(kept, " ")
	if commented {
		line += " #" + comment
	}
	return line + "\n", true
}
