// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/scripts/lab/objects"
)

func TestEveryFileOfObjectsIsAppliedAndNamesWhatItHolds(t *testing.T) {
	names, err := fs.Glob(objects.Files, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(objects.Order)); !slices.Equal(names, want) {
		t.Fatalf("got files %v, the order has %v", names, want)
	}
	for _, name := range names {
		text, err := objects.Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		err = eachObject(text, func(o Object) error {
			if o["apiVersion"] == nil || o["kind"] == nil || o.name() == "" {
				t.Errorf("%s: an object lacks apiVersion, kind or name: %v", name, o)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestObjectsHaveTheAddressesOfTheLab(t *testing.T) {
	text, err := objects.Files.ReadFile("lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		if !strings.Contains(string(text), "podIP: "+p.address+"\n") {
			t.Errorf("no pod at %s, the address of %s", p.address, p.netns)
		}
	}
	if !strings.Contains(string(text), "ip: "+GatewayAddress+"}") {
		t.Errorf("no load balancer at %s", GatewayAddress)
	}
}

func TestProcessIsToldFromAnotherOfItsPID(t *testing.T) {
	started, zombie, err := processStart(os.Getpid())
	if err != nil || zombie {
		t.Fatal(zombie, err)
	}
	p := process{PID: os.Getpid(), Started: started}
	if !p.running() {
		t.Error("this process does not run")
	}
	p.Started++
	if p.running() {
		t.Error("a process that began at another time is taken for ours")
	}
	if (&process{}).running() {
		t.Error("no process runs")
	}
}

func TestVersionsArePinned(t *testing.T) {
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{root: root}
	for _, p := range []program{kubeAPIServer, pilotDiscovery, pilotAgent} {
		if v, err := l.version(p); err != nil || !strings.HasPrefix(v, "v") {
			t.Errorf("%s: got version %q, %v", p.path, v, err)
		}
	}
}
