// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const pods = "/namespaces/external/pods"

// readYAML reads one object as JSON has it.
func readYAML(t *testing.T, name string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var o map[string]any
	if err := yaml.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// missing lists what of want is not in got. The API server adds defaults to
// what the golden pod says.
func missing(path string, want, got any) []string {
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		var all []string
		for k, v := range w {
			all = append(all, missing(path+"."+k, v, g[k])...)
		}
		return all
	case []any:
		g, _ := got.([]any)
		if len(g) < len(w) {
			return []string{fmt.Sprintf("%s: %d of %d", path, len(g), len(w))}
		}
		var all []string
		for i, v := range w {
			all = append(all, missing(fmt.Sprintf("%s[%d]", path, i), v, g[i])...)
		}
		return all
	}
	if fmt.Sprint(want) != fmt.Sprint(got) {
		return []string{fmt.Sprintf("%s: got %v, want %v", path, got, want)}
	}
	return nil
}

// The API server has pods changed as the golden pod of heimdall/webhook says,
// and takes what comes out.
func TestClusterWebhook(t *testing.T) {
	w := install(t, "--set", "webhook.enabled=true", "--set", "webhook.image.repository=nasp-tun", "--set", "webhook.image.tag=test")
	w.eventually("heimdall is ready", func() bool { return w.status("/readyz") == http.StatusOK })
	pod := readYAML(t, "../webhook/testdata/pod.yaml")
	var got map[string]any
	w.Do(t, http.MethodPost, "/api/v1"+pods, "", pod, &got)
	golden := readYAML(t, "../webhook/testdata/injected.yaml")
	for _, part := range []string{"spec", "metadata"} {
		for _, text := range missing(part, golden[part], got[part]) {
			t.Error(text)
		}
	}

	// Who does not ask, and who must not have it, is left alone.
	create := func(namespace, name string, labels map[string]any, spec map[string]any) (map[string]any, error) {
		spec["containers"] = []any{map[string]any{"name": "app", "image": "app"}}
		o := map[string]any{"metadata": map[string]any{"name": name, "labels": labels}, "spec": spec}
		var out map[string]any
		err := w.Call(t.Context(), http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods", "", o, &out)
		return out, err
	}
	inject := map[string]any{"nasp.k8s.cisco.com/inject": "true"}
	for _, tt := range []struct {
		namespace string
		labels    map[string]any
	}{{"external", nil}, {"kube-system", inject}, {"heimdall", inject}} {
		out, err := create(tt.namespace, "plain", tt.labels, map[string]any{})
		if err != nil {
			t.Errorf("%s: %v", tt.namespace, err)
		}
		if strings.Contains(fmt.Sprint(out), "nasp-tun") {
			t.Errorf("%s: a pod was changed", tt.namespace)
		}
	}
	if _, err := create("external", "host", inject, map[string]any{"hostNetwork": true}); err == nil || !strings.Contains(err.Error(), "host's network") {
		t.Errorf("a pod with the host's network: %v", err)
	}
}
