// SPDX-License-Identifier: Apache-2.0

// Package chart holds how Heimdall is installed by Helm. Its tests run Helm.
package chart_test

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// helmTool is run by version, so that go.mod stays the product's own.
const helmTool = "helm.sh/helm/v3/cmd/helm@v3.22.0"

// helm runs Helm and returns what it says on both streams.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	if testing.Short() {
		t.Skip("building Helm takes minutes")
	}
	var out, diag bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"run", helmTool}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &diag
	err = cmd.Run()
	return out.String(), diag.String(), err
}

// render returns the chart's objects in YAML.
func render(t *testing.T, args ...string) string {
	t.Helper()
	out, diag, err := helm(t, append([]string{
		"template", "heimdall", ".", "--namespace", "heimdall", "--kube-version", "1.31.0",
		"--set", "namespaces[0].name=external", "--set", "namespaces[0].serviceAccounts={test-http}",
	}, args...)...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, diag)
	}
	return out
}

// An object is what the tests look at.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Rules    []struct {
		APIGroups     []string `yaml:"apiGroups"`
		Resources     []string
		ResourceNames []string `yaml:"resourceNames"`
		Verbs         []string
	}
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Image string
					Args  []string
				}
			}
		}
	}
	Data map[string]string
}

func objects(t *testing.T, text string) []object {
	t.Helper()
	var all []object
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o object
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if o.Kind != "" {
			all = append(all, o)
		}
	}
}

func find(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	i := slices.IndexFunc(all, func(o object) bool { return o.Kind == kind && o.Metadata.Name == name })
	if i < 0 {
		t.Fatalf("no %s %s", kind, name)
	}
	return all[i]
}

func TestLint(t *testing.T) {
	out, diag, err := helm(t, "lint", "--strict", ".", "--set", "namespaces[0].name=external")
	if err != nil {
		t.Errorf("helm lint: %v\n%s%s", err, out, diag)
	}
	// Heimdall without a namespace would be one for all or for none.
	if _, diag, err := helm(t, "template", "heimdall", "."); err == nil || !strings.Contains(diag, "namespaces") {
		t.Errorf("without namespaces: %v\n%s", err, diag)
	}
}

// Outside the namespaces that it is given Heimdall may only ask whose a token
// is.
func TestSmallestRights(t *testing.T) {
	all := objects(t, render(t, "--set", "namespaces[1].name=more"))
	for _, o := range all {
		for _, r := range o.Rules {
			if o.Kind == "ClusterRole" && !slices.Equal(r.Resources, []string{"tokenreviews"}) {
				t.Errorf("ClusterRole %s: %v", o.Metadata.Name, r)
			}
			if slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") || slices.Contains(r.APIGroups, "*") {
				t.Errorf("%s %s has a wildcard: %v", o.Kind, o.Metadata.Name, r)
			}
			if !slices.Contains(r.Resources, "secrets") {
				continue
			}
			if o.Metadata.Namespace != "external" && o.Metadata.Namespace != "more" {
				t.Errorf("Secrets of namespace %s", o.Metadata.Namespace)
			}
			if slices.Contains(r.Verbs, "list") || slices.Contains(r.Verbs, "watch") {
				t.Errorf("Secrets can be listed: %v", r.Verbs)
			}
		}
	}
	tokens := func(namespace string) []string {
		i := slices.IndexFunc(all, func(o object) bool {
			return o.Kind == "Role" && o.Metadata.Namespace == namespace && o.Metadata.Name == "heimdall-groups"
		})
		for _, r := range all[i].Rules {
			if slices.Contains(r.Resources, "serviceaccounts/token") {
				return r.ResourceNames
			}
		}
		return nil
	}
	if got := tokens("external"); !slices.Equal(got, []string{"test-http"}) {
		t.Errorf("tokens of %v in external", got)
	}
	if got := tokens("more"); got != nil {
		t.Errorf("tokens of %v in more", got)
	}
}

func TestValues(t *testing.T) {
	args := func(set ...string) []string {
		d := find(t, objects(t, render(t, set...)), "Deployment", "heimdall")
		return d.Spec.Template.Spec.Containers[0].Args
	}
	if got := args(); slices.Contains(got, "--allow-any-account") || !slices.Contains(got, "--namespaces=external") {
		t.Errorf("arguments %v", got)
	}
	got := args("--set", "allowAnyAccount=true", "--set", "istio.revision=canary", "--set", "gateway.namespace=edge")
	for _, want := range []string{"--allow-any-account", "--revision=canary", "--gateway-namespace=edge"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %v", want, got)
		}
	}
	all := objects(t, render(t, "--set", "image.repository=r", "--set", "image.tag=t", "--set", "gateway.expose=true", "--set", "istio.revision=canary"))
	if got := find(t, all, "Deployment", "heimdall").Spec.Template.Spec.Containers[0].Image; got != "r:t" {
		t.Errorf("image %s", got)
	}
	find(t, all, "VirtualService", "heimdall")
	if role := find(t, all, "Role", "heimdall-mesh"); !slices.Contains(role.Rules[1].ResourceNames, "istio-canary") {
		t.Errorf("ConfigMaps %v", role.Rules[1].ResourceNames)
	}
	for _, o := range objects(t, render(t, "--set", "tls.secretName=mine")) {
		if o.Kind == "Secret" {
			t.Errorf("Secret %s beside the user's own", o.Metadata.Name)
		}
	}
}
