// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
)

// HostsPath is the table of names that libc, Go, Java and node ask before DNS.
const HostsPath = "/etc/hosts"

// maxHosts bounds what is read of the hosts file: ad blockers' lists have some
// megabytes.
const maxHosts = 8 << 20

// HostsNames returns the names in the hosts file at path (empty: [HostsPath]), in
// lower case. A mesh name among them never reaches our resolver, which is worth a
// warning. A file that cannot be read has no names.
func HostsNames(path string) map[string]bool {
	if path == "" {
		path = HostsPath
	}
	names := make(map[string]bool)
	f, err := os.Open(path)
	if err != nil {
		return names
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHosts))
	if err != nil {
		return names
	}
	for line := range bytes.Lines(text) {
		line, _, _ := strings.Cut(string(line), "#")
		if f := strings.Fields(line); len(f) > 1 {
			for _, name := range f[1:] {
				names[strings.ToLower(strings.TrimSuffix(name, "."))] = true
			}
		}
	}
	return names
}

// proxyVars make programs ask a proxy for a name instead of connecting to it, so
// that mesh names fail there or go round the mesh. no_proxy is not one of them.
var proxyVars = []string{"http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "grpc_proxy", "ws_proxy", "wss_proxy"}

// ProxyVars returns the names of the variables in env that set a proxy.
func ProxyVars(env []string) []string {
	var set []string
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if value != "" && slices.Contains(proxyVars, strings.ToLower(name)) {
			set = append(set, name)
		}
	}
	return set
}

// WithoutProxy returns env without the variables that set a proxy.
func WithoutProxy(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(proxyVars, strings.ToLower(name))
	})
}

// setEnv returns env with name set to value, or without it if value is empty.
func setEnv(env []string, name, value string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	if value == "" {
		return env
	}
	return append(env, name+"="+value)
}

// getEnv returns the value of name in env, as execvp(3) would see it.
func getEnv(env []string, name string) (string, bool) {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value, true
		}
	}
	return "", false
}
