// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the program does is tested as the chart installs it, in heimdall/chart.
func TestUsage(t *testing.T) {
	const files = " --tls-cert-file c --tls-key-file k"
	for line, want := range map[string]string{
		"":                                 "--namespaces",
		"--namespaces a":                   "--tls-secret",
		"--namespaces a --tls-cert-file c": "--tls-secret",
		"--namespaces a --tls-secret n":    "NAMESPACE/NAME",
		"--namespaces a --tls-secret a/b" + files: "either",
		"--namespaces a --log-level loud" + files: "--log-level",
		"--namespaces a --log-format xml" + files: "--log-format",
		"--namespaces a more" + files:             `unexpected argument "more"`,
		"--nonsense":                              "unknown flag",
	} {
		var stderr bytes.Buffer
		if code := command(t.Context(), strings.Fields(line), &stderr); code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: exit %d: %s", line, code, &stderr)
		}
	}
	var stderr bytes.Buffer
	if code := command(t.Context(), []string{"--help"}, &stderr); code != 0 || !strings.Contains(stderr.String(), "--allow-any-account") {
		t.Errorf("--help: exit %d: %s", code, &stderr)
	}
}

// A start that cannot work ends with its cause.
func TestFails(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	text := `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}], contexts: [{name: c, context: {cluster: c}}]}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ args, want string }{
		"no kubeconfig": {"--kubeconfig " + dir + "/gone", "kubeconfig"},
		"no port":       {"--kubeconfig " + config + " --listen 127.0.0.1:99999", "listen for laptops"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			args := append(strings.Fields(tt.args), "--namespaces=a", "--tls-secret=a/b")
			if code := command(t.Context(), args, &stderr); code != exitFailure || !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("exit %d: %s", code, &stderr)
			}
		})
	}
}
