// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]target{
		"echo.testing":                 {"echo.testing", 80, ""},
		"echo.testing:9000":            {"echo.testing", 9000, ""},
		"echo.testing/a/b?c":           {"echo.testing", 80, "/a/b?c"},
		"http://echo.testing:81/":      {"echo.testing", 81, "/"},
		"https://echo.testing":         {"echo.testing", 443, ""},
		"10.96.0.10:80":                {"10.96.0.10", 80, ""},
		"[fd00::1]:80":                 {"fd00::1", 80, ""},
		"[fd00::1]":                    {"fd00::1", 80, ""},
		"fd00::1":                      {"fd00::1", 80, ""},
		"https://[fd00::1]:8443/x:1/y": {"fd00::1", 8443, "/x:1/y"},
	} {
		if got, err := parseTarget(in); err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":80", "/path", "echo.testing:0", "echo.testing:http", "http://"} {
		if got, err := parseTarget(in); err == nil {
			t.Errorf("%q: got %+v, want an error", in, got)
		}
	}
}
