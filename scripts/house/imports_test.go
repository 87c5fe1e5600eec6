// SPDX-License-Identifier: Apache-2.0

// Package house holds the rules of the project that only the whole tree can
// break: who may import whom, that each package has its first page, and
// under which licences the dependencies come.
package house

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nasp-tun/nasp-tun/"

// A pkg is the part of `go list -json` that the rules need.
type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Imports    []string
	GoFiles    []string
	Module     *struct{ Path string }
}

func (p pkg) room() string { return strings.TrimPrefix(p.ImportPath, module) }

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Name,Doc,Imports,GoFiles,Module"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var e *exec.ExitError
		if errors.As(err, &e) {
			t.Fatalf("go list: %s", e.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// rooms lists, for each package, the packages of the project that it may
// import. A package that is not listed may import none; a trailing slash
// stands for all below.
var rooms = map[string][]string{
	"cmd/nasp-tun":               {"heimdall", "mesh", "mesh/", "netstack", "netstack/host"},
	"netstack":                   {"netstack/tunlink"},
	"netstack/netstacktest":      {"netstack", "netstack/tunlink"},
	"heimdall/kube":              {"heimdall"},
	"heimdall/kube/kubetest":     {},
	"heimdall/server":            {"heimdall", "heimdall/kube"},
	"heimdall/controller":        {"heimdall", "heimdall/kube"},
	"cmd/heimdall":               {"heimdall/kube", "heimdall/server", "heimdall/controller"},
	"mesh":                       {"mesh/"},
	"mesh/balance":               {"mesh/resource"},
	"mesh/catalog":               {"mesh/resource", "mesh/balance"},
	"mesh/upstream":              {"mesh/identity", "mesh/balance", "mesh/resource"},
	"mesh/upstream/upstreamtest": {"mesh/identity"},
	"mesh/telemetry":             {"mesh/resource"},
	"mesh/httpproxy":             {"mesh/catalog", "mesh/balance", "mesh/upstream", "mesh/telemetry", "mesh/resource"},
	"mesh/proxy":                 {"mesh/catalog", "mesh/balance", "mesh/upstream", "mesh/httpproxy", "mesh/telemetry", "mesh/resource"},
	"mesh/dns":                   {"mesh/catalog"},
	"mesh/resource":              {"mesh/resource/"},
	"mesh/minimesh":              {"mesh/minimesh/", "mesh/resource/"},
}

// outside says which of the heavy modules a room may use; what is not named
// here is free for all.
var outside = map[string][]string{
	"gvisor.dev/gvisor":                      {"netstack", "netstack/netstacktest", "netstack/tunlink"},
	"github.com/vishvananda/netlink":         {"netstack/host"},
	"github.com/envoyproxy/go-control-plane": {"mesh/resource", "mesh/xds", "mesh/minimesh"},
	"google.golang.org/grpc":                 {"mesh", "mesh/xds", "mesh/identity", "mesh/minimesh", "cmd/nasp-tun"},
	"github.com/prometheus/client_golang":    {"mesh", "mesh/telemetry", "heimdall/server", "heimdall/controller", "cmd/heimdall", "cmd/nasp-tun"},
	"github.com/miekg/dns":                   {"mesh", "mesh/dns", "cmd/nasp-tun"},
	"github.com/spf13/cobra":                 {"cmd/nasp-tun"},
	"k8s.io/client-go":                       {"heimdall/kube", "heimdall/kube/kubetest", "heimdall/controller", "cmd/heimdall"},
	"sigs.k8s.io/controller-runtime":         {"heimdall/controller", "cmd/heimdall"},
}

// banned are modules that must not be linked at all, with the reason.
var banned = map[string]string{
	"k8s.io/kubernetes": "the product talks to istiod, not to the cluster's API",
	"istio.io/istio":    "size; its protos are declared by our own files",
}

func TestRoomsImportOnlyTheirNeighbours(t *testing.T) {
	for _, p := range list(t, "./...") {
		if strings.HasPrefix(p.room(), "scripts/") {
			continue
		}
		for _, imp := range p.Imports {
			if in, ok := strings.CutPrefix(imp, module); ok && !allowed(rooms[p.room()], in) {
				t.Errorf("%s imports %s, which the table of rooms does not allow", p.room(), in)
			}
			for mod, users := range outside {
				if (imp == mod || strings.HasPrefix(imp, mod+"/")) && !slices.ContainsFunc(users, func(u string) bool {
					return p.room() == u || strings.HasPrefix(p.room(), u+"/proto") || u == "mesh/minimesh" && strings.HasPrefix(p.room(), u)
				}) {
					t.Errorf("%s imports %s, which belongs to %v", p.room(), imp, users)
				}
			}
		}
	}
}

func allowed(table []string, imp string) bool {
	return slices.ContainsFunc(table, func(a string) bool {
		return a == imp || strings.HasSuffix(a, "/") && strings.HasPrefix(imp, a)
	})
}

func TestNothingBannedIsLinked(t *testing.T) {
	for _, p := range list(t, "-deps", "./...") {
		if p.Module == nil {
			continue
		}
		if why, ok := banned[p.Module.Path]; ok {
			t.Errorf("%s is linked: %s", p.ImportPath, why)
		}
	}
}

// tooLarge are packages that a cluster's program may link and a laptop's may
// not, with the reason.
var tooLarge = map[string]string{
	"k8s.io/client-go/kubernetes":    "the typed clientset costs 14 MB of memory at start",
	"k8s.io/api":                     "all types of Kubernetes, for a few fields",
	"sigs.k8s.io/controller-runtime": "it brings the typed clientset",
}

func TestLaptopStaysSmall(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/nasp-tun", "./heimdall/kube") {
		for path, why := range tooLarge {
			if p.ImportPath == path || strings.HasPrefix(p.ImportPath, path+"/") {
				t.Errorf("%s is linked into nasp-tun: %s", p.ImportPath, why)
			}
		}
	}
}

func TestEachPackageHasOneFirstPage(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 && len(strings.Fields(p.Doc)) < 5 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
