// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestProxyVars(t *testing.T) {
	env := []string{"PATH=/bin", "http_proxy=http://p:3128", "HTTPS_PROXY=x", "all_proxy=", "no_proxy=a", "xhttp_proxy=y", "Http_Proxy=z"}
	if got, want := ProxyVars(env), []string{"http_proxy", "HTTPS_PROXY", "Http_Proxy"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := WithoutProxy(env), []string{"PATH=/bin", "no_proxy=a", "xhttp_proxy=y"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if env[1] != "http_proxy=http://p:3128" {
		t.Error("the caller's slice was changed")
	}
}

func TestSetEnv(t *testing.T) {
	env := []string{"A=1", "AB=2", "A=3"}
	for _, row := range []struct {
		name, value string
		want        []string
	}{
		{"A", "x", []string{"AB=2", "A=x"}},
		{"A", "", []string{"AB=2"}},
		{"C", "y", []string{"A=1", "AB=2", "A=3", "C=y"}},
	} {
		if got := setEnv(env, row.name, row.value); !slices.Equal(got, row.want) {
			t.Errorf("%s=%s: got %q", row.name, row.value, got)
		}
	}
	if v, ok := getEnv(env, "A"); v != "1" || !ok {
		t.Errorf("got %q, %v", v, ok)
	}
	if _, ok := getEnv(env, "B"); ok {
		t.Error("found a name that is not there")
	}
}

func TestHostsNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte("127.0.0.1 localhost\n10.0.0.1\tEcho.Testing. echo # comment other\n# 10.0.0.2 no\n10.0.0.3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := HostsNames(path)
	for _, name := range []string{"localhost", "echo.testing", "echo"} {
		if !got[name] {
			t.Errorf("%s is missing", name)
		}
	}
	if len(got) != 3 {
		t.Errorf("got %v", got)
	}
	if got := HostsNames(path + ".none"); len(got) != 0 {
		t.Errorf("no file: got %v", got)
	}
}

func TestWithoutResolve(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"hosts: files dns\n", ""},
		{"passwd: files resolve\n", ""},
		{"hosts: files resolve dns\n", "hosts: files dns\n"},
		{"hosts:files resolve [!UNAVAIL=return] dns", "hosts: files dns\n"},
		{"hosts: mymachines resolve[!UNAVAIL=return]files myhostname dns # note\n", "hosts: mymachines files myhostname dns # note\n"},
		{"hosts: resolve [ SUCCESS=return NOTFOUND=continue ] files [NOTFOUND=return] dns\n", "hosts: files [NOTFOUND=return] dns\n"},
		{"hosts: mdns4_minimal [NOTFOUND=return] resolve\n", "hosts: mdns4_minimal [NOTFOUND=return] dns\n"},
		{"# hosts: resolve\nhosts : files resolve\nnetworks: files\n", "# hosts: resolve\nhosts: files dns\nnetworks: files\n"},
	} {
		got, changed := withoutResolve([]byte(row.text))
		if changed != (row.want != "") {
			t.Errorf("%q: changed %v", row.text, changed)
		}
		if changed && string(got) != row.want || !changed && string(got) != row.text {
			t.Errorf("%q: got %q, want %q", row.text, got, row.want)
		}
	}
}
