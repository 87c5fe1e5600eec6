// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/proto"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

var update = flag.Bool("update", false, "write the golden files again")

const recordedDir = "testdata/istiod-1.31-laptop"

// recorded returns the resources of one recorded response.
func recorded(t testing.TB, typ string) []*discoveryv3.Resource {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(recordedDir, typ+".pb"))
	if err != nil {
		t.Fatal(err)
	}
	var resp discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b, &resp); err != nil {
		t.Fatal(err)
	}
	if len(resp.GetResources()) == 0 {
		t.Fatalf("%s: no resources", typ)
	}
	return resp.GetResources()
}

// decoders decode each recorded type.
var decoders = []struct {
	typ    string
	decode func(*discoveryv3.Resource) (any, error)
}{
	{"envoy.config.cluster.v3.Cluster", func(r *discoveryv3.Resource) (any, error) {
		return resource.DecodeCluster(r.GetResource())
	}},
	{"envoy.config.endpoint.v3.ClusterLoadAssignment", func(r *discoveryv3.Resource) (any, error) {
		return resource.DecodeEndpoints(r.GetResource())
	}},
	{"envoy.config.listener.v3.Listener", func(r *discoveryv3.Resource) (any, error) {
		return resource.DecodeListener(r.GetResource())
	}},
	{"envoy.config.route.v3.RouteConfiguration", func(r *discoveryv3.Resource) (any, error) {
		return resource.DecodeRoutes(r.GetResource())
	}},
	{"istio.networking.nds.v1.NameTable", func(r *discoveryv3.Resource) (any, error) {
		return resource.DecodeNameTable(r.GetResource())
	}},
	{"istio.workload.Address", func(r *discoveryv3.Resource) (any, error) {
		w, s, err := resource.DecodeAddress(r.GetResource())
		if w != nil {
			return w, err
		}
		return s, err
	}},
}

// TestRecorded decodes everything that a real istiod sent, and compares with
// what was understood of it when it was last read by a person.
func TestRecorded(t *testing.T) {
	golden := recordedDir + ".txtar"
	var got txtar.Archive
	for _, d := range decoders {
		for _, r := range recorded(t, d.typ) {
			v, err := d.decode(r)
			if err != nil {
				t.Errorf("%s %q: %v", d.typ, r.GetName(), err)
				continue
			}
			var b strings.Builder
			show(&b, reflect.ValueOf(v), 0)
			got.Files = append(got.Files, txtar.File{Name: d.typ + " " + r.GetName(), Data: []byte(b.String())})
		}
	}
	compareGolden(t, golden, txtar.Format(&got))
}

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

// show writes a value as indented text, without what is zero.
func show(b *strings.Builder, v reflect.Value, depth int) {
	if v.Kind() == reflect.Pointer && v.Type() != reflect.TypeFor[*regexp.Regexp]() {
		v = v.Elem()
	}
	indent := "\n" + strings.Repeat("  ", depth)
	switch x := v.Interface().(type) {
	case time.Duration, *regexp.Regexp:
		fmt.Fprint(b, " ", x)
		return
	case fmt.Stringer:
		fmt.Fprint(b, " ", x)
		return
	case []byte:
		fmt.Fprintf(b, " %q", x)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				fmt.Fprintf(b, "%s%s:", indent, v.Type().Field(i).Name)
				show(b, f, depth+1)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			b.WriteString(indent + "-")
			show(b, v.Index(i), depth+1)
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			fmt.Fprintf(b, "%s%s:", indent, k)
			show(b, v.MapIndex(k), depth+1)
		}
	case reflect.String:
		fmt.Fprintf(b, " %q", v.String())
	default:
		fmt.Fprint(b, " ", v.Interface())
	}
}
