// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/nasp-tun/nasp-tun/heimdall"
)

// A Config is every setting of nasp-tun. Each is a flag, which wins over the
// environment (NASP_TUN_ and the flag's name in capitals), which wins over the
// file (YAML; its keys are the flags' long names), which wins over the default.
//
// The environment is read in this file and nowhere else.
type Config struct {
	File string // --config

	Enrol   EnrolConfig
	Exec    ExecConfig
	Observe ObserveConfig
	Client  ClientConfig

	env       environment
	effective []Setting // filled by load
}

// An EnrolConfig says where the workload's place in the mesh comes from: from
// Heimdall, from a folder of files, or from these flags themselves.
type EnrolConfig struct {
	Heimdall   *url.URL
	HeimdallCA string
	TokenFile  string
	// Token is NASP_AUTH_TOKEN, as programs of nasp's have it. There is no
	// flag of this kind: arguments are for everyone to read.
	Token heimdall.Secret

	Bundle string

	Istiod           string
	IstiodServerName string
	IstiodCA         string
	IstioTokenFile   string
	ClusterID        string
	Namespace        string
	ServiceAccount   string
	Workload         string
	Network          string
	MeshID           string
	DNSDomain        string
	Revision         string
	Labels           []label
	InstanceIPs      []netip.Addr
}

// An ExecConfig says how CMD runs.
type ExecConfig struct {
	User           string
	Linger         bool
	HostPorts      []uint16
	NoHostLoopback bool
	NoProxyEnv     bool
	DNSPassthrough bool
	Outside        string // "mesh" or "allow"
}

// An ObserveConfig says what can be seen of a session, and where.
type ObserveConfig struct {
	Name            string
	MetricsAddr     string
	LogLevel        string
	LogFormat       string
	LogFile         string
	AccessLog       string
	AccessLogFormat string
}

// A ClientConfig is what the verbs need that ask a running session.
type ClientConfig struct {
	Session string
	Output  string // "text" or "json"
}

// A Setting is one effective value and where it came from.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// An environment is what the process was given at start.
type environment struct {
	list []string // as os.Environ
}

func systemEnvironment() environment { return environment{list: os.Environ()} }

func (e environment) lookup(name string) (string, bool) {
	for _, kv := range e.list {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

func (e environment) get(name string) string {
	v, _ := e.lookup(name)
	return v
}

// configFile is where the file is looked for when --config does not say.
func (e environment) configFile() string {
	dir := e.get("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) { // the XDG specification: relative ones are ignored
		home := e.get("HOME")
		if home == "" {
			return ""
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "nasp-tun", "config.yaml")
}

// runtimeDir is the folder that the login manager gives to this user.
func (e environment) runtimeDir() string { return e.get("XDG_RUNTIME_DIR") }

// A flagGroup adds the flags of one part of the Config.
type flagGroup func(*Config, *pflag.FlagSet)

// allFlags is what the file and the environment may hold, whichever verb reads
// them, and what the README's table lists.
func allFlags(c *Config) *pflag.FlagSet {
	fs := pflag.NewFlagSet("nasp-tun", pflag.ContinueOnError)
	fs.SortFlags = false
	for _, add := range []flagGroup{enrolFlags, execFlags, observeFlags, clientFlags, fileFlag} {
		add(c, fs)
	}
	return fs
}

func fileFlag(c *Config, fs *pflag.FlagSet) {
	fs.StringVar(&c.File, "config", "", "read settings from `FILE` (default $XDG_CONFIG_HOME/nasp-tun/config.yaml)")
}

func enrolFlags(c *Config, fs *pflag.FlagSet) {
	e := &c.Enrol
	fs.Var(&parsed[*url.URL]{to: &e.Heimdall, kind: "URL", parse: parseHeimdallURL}, "heimdall", "enrol at the Heimdall server of this URL (https); HEIMDALL_URL is read too")
	fs.StringVar(&e.HeimdallCA, "heimdall-ca", "", "trust Heimdall by the certificates of this PEM `FILE` instead of the system's")
	fs.StringVar(&e.TokenFile, "token-file", "", "access token for Heimdall: `FILE`, or - for standard input; NASP_AUTH_TOKEN is read too")
	fs.StringVar(&e.Bundle, "bundle", "", "enrol by the files in `DIR` that istioctl x workload entry configure has written")
	fs.Var(&parsed[string]{to: &e.Istiod, kind: "HOST:PORT", parse: parseHostPort}, "istiod", "enrol by these flags: the address of istiod, or of a gateway that leads to it")
	fs.StringVar(&e.IstiodServerName, "istiod-server-name", "", "`NAME` that istiod's certificate must hold (default istiod.istio-system.svc, or istiod-REVISION)")
	fs.StringVar(&e.IstiodCA, "istiod-ca", "", "trust istiod and the mesh by the root certificates of this PEM `FILE` (read again when it changes)")
	fs.StringVar(&e.IstioTokenFile, "istio-token-file", "", "service account token for istiod: `FILE` (read again), or - for standard input")
	fs.StringVar(&e.ClusterID, "cluster-id", "Kubernetes", "`ID` of the cluster that knows the service account")
	fs.StringVarP(&e.Namespace, "namespace", "n", "", "`NAMESPACE` of the workload")
	fs.StringVar(&e.ServiceAccount, "service-account", "default", "service account `NAME` of the workload")
	fs.StringVar(&e.Workload, "workload", "", "workload `NAME` (default: the service account)")
	fs.StringVar(&e.Network, "network", "", "network `NAME` of this machine; other networks are reached by their gateways")
	fs.StringVar(&e.MeshID, "mesh-id", "", "`ID` of the mesh, for telemetry")
	fs.StringVar(&e.DNSDomain, "dns-domain", "cluster.local", "DNS `DOMAIN` of the cluster")
	fs.StringVar(&e.Revision, "revision", "", "istiod's `REVISION`")
	fs.Var(&listed[label]{to: &e.Labels, kind: "KEY=VALUE", parse: parseLabel}, "label", "label of the workload; may be repeated")
	fs.Var(&listed[netip.Addr]{to: &e.InstanceIPs, kind: "ADDRESS", parse: parseAddr}, "instance-ip", "address of this machine as the mesh shall know it (default: the one that leads to istiod)")
}

func execFlags(c *Config, fs *pflag.FlagSet) {
	x := &c.Exec
	fs.StringVar(&x.User, "user", "", "run CMD as this `USER` (name or uid); needs root")
	fs.BoolVar(&x.Linger, "linger", false, "stay until the last descendant of CMD has ended")
	fs.Var(&listed[uint16]{to: &x.HostPorts, kind: "PORT", parse: parsePort}, "host-port", "let CMD reach this port of the host's 127.0.0.1 at its own 127.0.0.1; may be repeated")
	fs.BoolVar(&x.NoHostLoopback, "no-host-loopback", false, "close host.nasp-tun.internal (192.0.0.3), which is the host's 127.0.0.1")
	fs.BoolVar(&x.NoProxyEnv, "no-proxy-env", false, "unset http_proxy and its like for CMD")
	fs.BoolVar(&x.DNSPassthrough, "dns-passthrough", false, "send DNS queries for names outside the mesh to the server that CMD asked, not to the host's")
	fs.Var(&parsed[string]{to: &x.Outside, text: setDefault(&x.Outside, "mesh"), kind: "POLICY", parse: oneOf("mesh", "allow")}, "outside", "destinations that the mesh does not know: mesh obeys its outbound policy, allow passes them all the same")
}

func observeFlags(c *Config, fs *pflag.FlagSet) {
	o := &c.Observe
	fs.Var(&parsed[string]{to: &o.Name, kind: "NAME", parse: parseSessionName}, "name", "name of the session (default: that of CMD)")
	fs.Var(&parsed[string]{to: &o.MetricsAddr, kind: "ADDRESS", parse: parseListen}, "metrics-addr", "serve /metrics and /healthz at [ADDRESS]:PORT, on loopback unless an address is given")
	fs.Var(&parsed[string]{to: &o.LogLevel, kind: "LEVEL", parse: oneOf("debug", "info", "warn", "error")}, "log-level", "debug, info, warn or error (default warn, or info with --log-file)")
	fs.Var(&parsed[string]{to: &o.LogFormat, text: setDefault(&o.LogFormat, "text"), kind: "FORMAT", parse: oneOf("text", "json")}, "log-format", "text or json")
	fs.StringVar(&o.LogFile, "log-file", "", "append the log to `FILE` instead of standard error")
	fs.StringVar(&o.AccessLog, "access-log", "", "append one record for each flow or request to `FILE` (- for standard error)")
	fs.Var(&parsed[string]{to: &o.AccessLogFormat, text: setDefault(&o.AccessLogFormat, "text"), kind: "FORMAT", parse: oneOf("text", "json")}, "access-log-format", "text or json")
}

func clientFlags(c *Config, fs *pflag.FlagSet) {
	fs.StringVar(&c.Client.Session, "session", "", "ask the session of this `NAME` or process id, when several run")
	outputFlag(c, fs)
}

func outputFlag(c *Config, fs *pflag.FlagSet) {
	fs.VarP(&parsed[string]{to: &c.Client.Output, text: setDefault(&c.Client.Output, "text"), kind: "FORMAT", parse: oneOf("text", "json")}, "output", "o", "text or json")
}

// setDefault gives a variable its default and returns the default's text.
func setDefault(to *string, s string) string {
	*to = s
	return s
}
