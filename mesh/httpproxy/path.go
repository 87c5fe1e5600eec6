// SPDX-License-Identifier: Apache-2.0

package httpproxy

import "strings"

// normalizePath does what Envoy's normalize_path and merge_slashes do to the
// path of a request, where the mesh turns them on: routes are matched on the
// result, and it is what is sent on. The query is left alone.
func normalizePath(target string, dots, slashes bool) string {
	path, query, hasQuery := strings.Cut(target, "?")
	if !strings.HasPrefix(path, "/") {
		return target
	}
	if dots {
		path = removeDots(path)
	}
	for slashes && strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	if hasQuery {
		return path + "?" + query
	}
	return path
}

// removeDots resolves "." and ".." (RFC 3986 5.2.4), also where they are spelt
// with %2e, and takes a backslash for a slash, as browsers do.
func removeDots(path string) string {
	if strings.Contains(path, `\`) {
		path = strings.ReplaceAll(path, `\`, "/")
	}
	if !strings.Contains(path, "/.") && !strings.Contains(path, "%2e") && !strings.Contains(path, "%2E") {
		return path
	}
	var out []string
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch strings.NewReplacer("%2e", ".", "%2E", ".").Replace(s) {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}
