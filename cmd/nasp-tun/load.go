// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/nasp-tun/nasp-tun/heimdall"
)

// Where a value can come from.
const (
	sourceFlag    = "flag"
	sourceEnv     = "environment"
	sourceFile    = "file"
	sourceDefault = "default"
)

// envPrefix begins the variables that are settings.
const envPrefix = "NASP_TUN_"

// aliases are variables of nasp's that users have set already.
var aliases = map[string]string{"heimdall": "HEIMDALL_URL"}

// testVariable belongs to the project's own tests, which set it for everything
// that they start.
const testVariable = envPrefix + "NETNS"

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// A configError is a setting that the file or the environment got wrong.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

func configErrorf(format string, args ...any) error {
	return &configError{fmt.Errorf(format, args...)}
}

// load completes the flags of one verb, already parsed, with what the
// environment and the file say, and remembers the source of each. Settings of
// other verbs are checked for their names and values all the same: a mistake
// must not wait for the verb that it breaks.
func (c *Config) load(flags *pflag.FlagSet) error {
	sources := make(map[string]string)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			sources[f.Name] = sourceFlag
		}
	})
	if err := c.loadEnv(flags, sources); err != nil {
		return err
	}
	if err := c.loadFile(flags, sources); err != nil {
		return err
	}
	c.effective = nil
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		source := sources[f.Name]
		if source == "" {
			source = sourceDefault
		}
		value := f.Value.String()
		if f.Name == "token-file" && !c.Enrol.Token.IsZero() {
			value = c.Enrol.Token.String()
		}
		c.effective = append(c.effective, Setting{f.Name, value, source})
	})
	return c.chooseEnrolment(sources)
}

func (c *Config) loadEnv(flags *pflag.FlagSet, sources map[string]string) error {
	known := allFlags(&Config{})
	var errs []error
	known.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		value, ok := c.env.lookup(name)
		if !ok && aliases[f.Name] != "" {
			name = aliases[f.Name]
			value, ok = c.env.lookup(name)
		}
		if !ok || value == "" { // an empty variable is the shell's way to unset one
			return
		}
		errs = append(errs, assign(flags, f, sources, sourceEnv+" "+name, value))
	})
	if t := c.env.get("NASP_AUTH_TOKEN"); t != "" && rank(sources["token-file"]) < rank(sourceEnv) {
		c.Enrol.Token = heimdall.NewSecret(t)
		sources["token-file"] = sourceEnv + " NASP_AUTH_TOKEN"
	}
	return errors.Join(errs...)
}

// unknownVariables lists the variables that look like settings and are none:
// most likely a slip of the pen. They are told, not refused, since another
// version of nasp-tun may know them.
func (c *Config) unknownVariables() []string {
	known := allFlags(&Config{})
	var unknown []string
	for _, kv := range c.env.list {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || value == "" || name == testVariable {
			continue
		}
		flag := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, envPrefix)), "_", "-")
		if f := known.Lookup(flag); f == nil || envName(f.Name) != name {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// assign gives values to a setting, unless a stronger source has. A setting
// that the running verb does not have is checked and forgotten.
func assign(flags *pflag.FlagSet, known *pflag.Flag, sources map[string]string, source string, values ...string) error {
	if sources[known.Name] != "" {
		return nil
	}
	target := flags.Lookup(known.Name)
	if target == nil {
		target = known
	} else {
		sources[known.Name] = source
	}
	for _, v := range values {
		if err := target.Value.Set(v); err != nil {
			return configErrorf("%s: %s: %w", source, known.Name, err)
		}
	}
	return nil
}

func (c *Config) loadFile(flags *pflag.FlagSet, sources map[string]string) error {
	path, asked := c.File, c.File != ""
	if !asked {
		if path = c.env.configFile(); path == "" {
			return nil
		}
	}
	if _, err := os.Stat(path); err != nil && !asked {
		return nil // not there, or in the home of somebody else, as under sudo -u
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return &configError{fmt.Errorf("read the configuration: %w", err)}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return configErrorf("read %s: %w", path, err)
	}
	if len(doc.Content) == 0 { // empty, or comments only
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return configErrorf("read %s:%d: must be keys and values", path, root.Line)
	}
	known := allFlags(&Config{})
	seen := make(map[string]bool)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		source := fmt.Sprintf("%s %s:%d", sourceFile, path, key.Line)
		f := known.Lookup(key.Value)
		switch {
		case f == nil || f.Name == "config":
			return configErrorf("%s: unknown key %q%s", source, key.Value, nearest(known, key.Value))
		case seen[f.Name]:
			return configErrorf("%s: key %q a second time", source, key.Value)
		}
		seen[f.Name] = true
		values, err := scalars(value)
		if err != nil {
			return configErrorf("%s: %s: %w", source, key.Value, err)
		}
		if err := assign(flags, f, sources, source, values...); err != nil {
			return err
		}
	}
	return nil
}

// scalars turns a value of the file into what a flag would have been given:
// a list is a repeated flag, a map (of labels) is KEY=VALUE for each.
func scalars(n *yaml.Node) ([]string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return nil, errors.New("has no value")
		}
		return []string{n.Value}, nil
	case yaml.SequenceNode:
		var out []string
		for _, e := range n.Content {
			if e.Kind != yaml.ScalarNode {
				return nil, errors.New("must be a list of plain values")
			}
			out = append(out, e.Value)
		}
		return out, nil
	case yaml.MappingNode:
		var out []string
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i+1].Kind != yaml.ScalarNode {
				return nil, errors.New("must be a map of plain values")
			}
			out = append(out, n.Content[i].Value+"="+n.Content[i+1].Value)
		}
		return out, nil
	}
	return nil, errors.New("must be a value, a list or a map")
}

// nearest suggests the setting that a wrong key was probably meant to be.
func nearest(known *pflag.FlagSet, key string) string {
	canonical := strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(key))
	hint := ""
	known.VisitAll(func(f *pflag.Flag) {
		if strings.ReplaceAll(f.Name, "-", "") == canonical {
			hint = fmt.Sprintf(" (is %q meant?)", f.Name)
		}
	})
	return hint
}

// rank orders the sources of values.
func rank(source string) int {
	kind, _, _ := strings.Cut(source, " ")
	return slices.Index([]string{sourceDefault, sourceFile, sourceEnv, sourceFlag}, kind)
}

// A way to enrol is named by one setting and reads others that no other way
// does. The labels and the instance address go with all of them.
type way struct {
	name   string
	others []string
	forget func(*EnrolConfig)
}

var ways = []way{
	{"heimdall", []string{"heimdall-ca", "token-file"}, func(e *EnrolConfig) { e.Heimdall = nil }},
	{"bundle", nil, func(e *EnrolConfig) { e.Bundle = "" }},
	{"istiod", []string{
		"istiod-server-name", "istiod-ca", "istio-token-file", "cluster-id", "namespace", "service-account",
		"workload", "network", "mesh-id", "dns-domain", "revision",
	}, func(e *EnrolConfig) { e.Istiod = "" }},
}

// chooseEnrolment settles which way to enrol holds when a file names one and a
// flag another: the stronger source. Flags that only another way would read
// are an error, since to ignore them would surprise.
func (c *Config) chooseEnrolment(sources map[string]string) error {
	best := slices.MaxFunc(ways, func(a, b way) int { return rank(sources[a.name]) - rank(sources[b.name]) })
	if rank(sources[best.name]) <= 0 {
		return nil
	}
	for _, w := range ways {
		if w.name == best.name {
			continue
		}
		if rank(sources[w.name]) == rank(sources[best.name]) {
			return &usageError{fmt.Errorf("--%s and --%s are two ways to enrol: give one", best.name, w.name)}
		}
		w.forget(&c.Enrol)
		for _, name := range w.others {
			if sources[name] == sourceFlag {
				return &usageError{fmt.Errorf("--%s goes with --%s, which does not hold here", name, w.name)}
			}
		}
	}
	return nil
}
