// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/nasp-tun/nasp-tun/heimdall"
)

// load reads a configuration as exec would.
func load(t *testing.T, file string, env, args []string) (*Config, error) {
	t.Helper()
	c := &Config{env: environment{list: env}}
	fs := pflag.NewFlagSet("exec", pflag.ContinueOnError)
	for _, add := range []flagGroup{enrolFlags, execFlags, observeFlags, fileFlag} {
		add(c, fs)
	}
	if file != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config=" + path}, args...)
	}
	if err := fs.Parse(args); err != nil {
		return c, flagError(err)
	}
	return c, c.load(fs)
}

func effective(t *testing.T, c *Config, name string) Setting {
	t.Helper()
	for _, s := range c.effective {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("setting %q is not listed", name)
	return Setting{}
}

func TestPrecedence(t *testing.T) {
	for _, tt := range []struct {
		name  string
		file  string
		env   []string
		args  []string
		value string
		from  string // the beginning of the source
	}{
		{name: "default", value: "mesh", from: "default"},
		{name: "file", file: "outside: allow", value: "allow", from: "file "},
		{name: "environment", env: []string{"NASP_TUN_OUTSIDE=allow"}, value: "allow", from: "environment NASP_TUN_OUTSIDE"},
		{name: "environment over file", file: "outside: mesh", env: []string{"NASP_TUN_OUTSIDE=allow"}, value: "allow", from: "environment"},
		{name: "flag over environment", env: []string{"NASP_TUN_OUTSIDE=mesh"}, args: []string{"--outside=allow"}, value: "allow", from: "flag"},
		{name: "flag over all", file: "outside: mesh", env: []string{"NASP_TUN_OUTSIDE=mesh"}, args: []string{"--outside=allow"}, value: "allow", from: "flag"},
		{name: "a flag may say the default", file: "outside: allow", args: []string{"--outside=mesh"}, value: "mesh", from: "flag"},
		{name: "an empty variable is none", env: []string{"NASP_TUN_OUTSIDE="}, value: "mesh", from: "default"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, tt.file, tt.env, tt.args)
			if err != nil {
				t.Fatal(err)
			}
			s := effective(t, c, "outside")
			if c.Exec.Outside != tt.value || s.Value != tt.value || !strings.HasPrefix(s.Source, tt.from) {
				t.Errorf("got %q, listed as %+v; want %q from %q", c.Exec.Outside, s, tt.value, tt.from)
			}
		})
	}
}

func TestFileForms(t *testing.T) {
	c, err := load(t, `
# what the laptop is
istiod: istiod.example.com:15012
namespace: external
linger: true
host-port: [5432, 6379]
label:
  app: laptop
  team: data
output: json   # a setting of other verbs
`, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Exec.HostPorts, []uint16{5432, 6379}; !cmp.Equal(got, want) {
		t.Errorf("host ports: got %v, want %v", got, want)
	}
	if got := effective(t, c, "label").Value; got != "app=laptop,team=data" {
		t.Errorf("labels: got %q", got)
	}
	if !c.Exec.Linger || c.Enrol.Istiod != "istiod.example.com:15012" || c.Enrol.Namespace != "external" {
		t.Errorf("got %+v %+v", c.Exec, c.Enrol)
	}
}

func TestRepeatedFlags(t *testing.T) {
	c, err := load(t, "host-port: [1, 2]", nil, []string{"--host-port=5432,6379", "--host-port", "80"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Exec.HostPorts, []uint16{5432, 6379, 80}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBadSettings(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string
		env  []string
		args []string
		want string
		code int
	}{
		{name: "unknown key", file: "\noutsdie: allow", want: `config.yaml:2: unknown key "outsdie"`, code: exitConfig},
		{name: "key with the wrong dash", file: "log_level: info", want: `(is "log-level" meant?)`, code: exitConfig},
		{name: "key twice", file: "outside: mesh\noutside: allow", want: `key "outside" a second time`, code: exitConfig},
		{name: "config inside config", file: "config: x", want: `unknown key "config"`, code: exitConfig},
		{name: "no map", file: "- outside", want: "must be keys and values", code: exitConfig},
		{name: "no YAML", file: "a: [", want: "read ", code: exitConfig},
		{name: "no value", file: "outside:", want: "outside: has no value", code: exitConfig},
		{name: "nested", file: "label: {a: {b: c}}", want: "must be a map of plain values", code: exitConfig},
		{name: "bad value in the file", file: "outside: maybe", want: `outside: "maybe": must be mesh or allow`, code: exitConfig},
		{name: "bad value of another verb", file: "output: yaml", want: `output: "yaml": must be text or json`, code: exitConfig},
		{name: "bad value in the environment", env: []string{"NASP_TUN_HOST_PORT=70000"}, want: `NASP_TUN_HOST_PORT: host-port: port "70000": must be a number from 1 to 65535`, code: exitConfig},
		{name: "missing file", args: []string{"--config=/nonexistent/c.yaml"}, want: "/nonexistent/c.yaml: no such file", code: exitConfig},
		{name: "unknown flag", args: []string{"--outsdie=allow"}, want: "unknown flag: --outsdie", code: exitUsage},
		{name: "port zero", args: []string{"--host-port=0"}, want: `port "0"`, code: exitUsage},
		{name: "plain http", args: []string{"--heimdall=http://h.example.com/config"}, want: "must be https, since a token is sent to it", code: exitUsage},
		{name: "password in the URL", args: []string{"--heimdall=https://me:hunter2@h.example.com/config"}, want: "must not hold a password", code: exitUsage},
		{name: "no URL", args: []string{"--heimdall=heimdall"}, want: "must be https://HOST", code: exitUsage},
		{name: "istiod without a port", args: []string{"--istiod=istiod"}, want: "must be HOST:PORT", code: exitUsage},
		{name: "no address", args: []string{"--instance-ip=10.0.0.0/8"}, want: "must be an IP address", code: exitUsage},
		{name: "no label", args: []string{"--label=app"}, want: "must be KEY=VALUE", code: exitUsage},
		{name: "bad session name", args: []string{"--name=a/b"}, want: "must be at most 32 of", code: exitUsage},
		{name: "bad metrics address", args: []string{"--metrics-addr=here"}, want: "must be [ADDRESS]:PORT", code: exitUsage},
		{name: "two ways to enrol", args: []string{"--heimdall=https://h", "--istiod=i:1"}, want: "two ways to enrol", code: exitUsage},
		{name: "two other ways to enrol", args: []string{"--bundle=d", "--istiod=i:1"}, want: "--bundle and --istiod are two ways to enrol", code: exitUsage},
		{name: "a flag of another way than the bundle", args: []string{"--bundle=d", "--token-file=f"}, want: "--token-file goes with --heimdall", code: exitUsage},
		{name: "a flag of the other way", args: []string{"--heimdall=https://h", "--namespace=external"}, want: "--namespace goes with --istiod", code: exitUsage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.env, tt.args)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			var b strings.Builder
			if got := report(&b, err).ShellCode(); got != tt.code {
				t.Errorf("got exit code %d, want %d", got, tt.code)
			}
			if strings.Contains(b.String(), "hunter2") {
				t.Errorf("the message holds a password: %s", b.String())
			}
		})
	}
}

// A file names one way to enrol, a flag the other: the flag holds, and what
// belongs to the file's way is put aside without a word.
func TestEnrolmentOfTheStrongerSource(t *testing.T) {
	const file = "istiod: istiod:15012\nnamespace: external"
	c, err := load(t, file, []string{"HEIMDALL_URL=https://heimdall:16443/config"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Enrol.Istiod != "" || c.Enrol.Heimdall.String() != "https://heimdall:16443/config" {
		t.Errorf("got istiod %q, heimdall %v", c.Enrol.Istiod, c.Enrol.Heimdall)
	}
	if s := effective(t, c, "heimdall"); s.Source != "environment HEIMDALL_URL" {
		t.Errorf("got source %q", s.Source)
	}
}

func TestTokenOfNasp(t *testing.T) {
	env := []string{"NASP_AUTH_TOKEN=abc\n"}
	c, err := load(t, "token-file: /some/file", env, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Enrol.Token.Reveal() != "abc" || c.Enrol.TokenFile != "" {
		t.Errorf("the variable must win over the file: got %q and %q", c.Enrol.Token.Reveal(), c.Enrol.TokenFile)
	}
	if s := effective(t, c, "token-file"); s.Value != "[redacted]" || s.Source != "environment NASP_AUTH_TOKEN" {
		t.Errorf("got %+v", s)
	}
	c, err = load(t, "", env, []string{"--token-file=/some/file"})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Enrol.Token.IsZero() || c.Enrol.TokenFile != "/some/file" {
		t.Errorf("the flag must win over the variable: got %q", c.Enrol.TokenFile)
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	const text = "eyJhbGciOi"
	c := Config{Enrol: EnrolConfig{Token: heimdall.NewSecret(text)}}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "token", c.Enrol.Token, "config", c.Enrol)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "token", c.Enrol.Token, "config", c.Enrol)
	encoded, err := json.Marshal(c.Enrol)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		fmt.Sprint(c.Enrol.Token), fmt.Sprintf("%v %+v %#v %s %q", c.Enrol, c.Enrol, c.Enrol, c.Enrol.Token, c.Enrol.Token),
		fmt.Sprintf("%x", c.Enrol.Token), fmt.Errorf("token %v", c.Enrol.Token).Error(), string(encoded), logged.String(),
	} {
		if strings.Contains(s, text) || strings.Contains(s, fmt.Sprintf("%x", text)) {
			t.Errorf("the secret is printed: %s", s)
		}
	}
}

func TestUnknownVariables(t *testing.T) {
	c := Config{env: environment{list: []string{
		"NASP_TUN_OUTSDIE=allow", "NASP_TUN_OUTSIDE=allow", "NASP_TUN_NETNS=require", "NASP_TUN_log_level=info", "PATH=/bin",
	}}}
	if got, want := c.unknownVariables(), []string{"NASP_TUN_OUTSDIE", "NASP_TUN_log_level"}; !cmp.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestConfigFileIsFound(t *testing.T) {
	for _, tt := range []struct {
		env  []string
		want string
	}{
		{[]string{"XDG_CONFIG_HOME=/xdg", "HOME=/h"}, "/xdg/nasp-tun/config.yaml"},
		{[]string{"XDG_CONFIG_HOME=relative", "HOME=/h"}, "/h/.config/nasp-tun/config.yaml"},
		{[]string{"HOME=/h"}, "/h/.config/nasp-tun/config.yaml"},
		{nil, ""},
	} {
		if got := (environment{list: tt.env}).configFile(); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestListenAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"15090": "127.0.0.1:15090", ":15090": "127.0.0.1:15090", "0.0.0.0:1": "0.0.0.0:1", "[::1]:0": "[::1]:0",
	} {
		if got, err := parseListen(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}
