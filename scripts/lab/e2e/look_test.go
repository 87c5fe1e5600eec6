// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

func TestStatusTellsOfAHealthySession(t *testing.T) {
	s := open(t, "test-http")
	var st struct {
		Mesh struct {
			Ready    bool
			Identity struct{ ID string }
			Istiod   struct {
				Connected bool
				Rejected  []any
				Pending   []string
				LastError string
			}
			Services int
			Warnings []string
		}
		Warnings []string
	}
	s.askJSON(&st, "status")
	m := &st.Mesh
	if !m.Ready || m.Identity.ID != identity("test-http") || !m.Istiod.Connected || m.Services == 0 {
		t.Errorf("got %+v", st)
	}
	if len(m.Istiod.Rejected) > 0 || len(m.Istiod.Pending) > 0 || m.Istiod.LastError != "" {
		t.Errorf("istiod's configuration is not whole: %+v", m.Istiod)
	}
	t.Logf("\n%s\n%s\n%s", s.ask("status").out, s.ask("services").out, s.ask("explain", "echo.testing").out)
}

func TestServicesAreThoseOfTheCluster(t *testing.T) {
	s := open(t, "test-http")
	var list struct {
		Services []struct {
			Host  string
			Ports []struct {
				Number         uint16
				Healthy, Total int
			}
		}
	}
	s.askJSON(&list, "services")
	for _, svc := range list.Services {
		if svc.Host != "echo.testing.svc.cluster.local" {
			continue
		}
		var ports []uint16
		for _, p := range svc.Ports {
			ports = append(ports, p.Number)
			if p.Healthy == 0 {
				t.Errorf("port %d has no healthy endpoint", p.Number)
			}
		}
		slices.Sort(ports)
		if !slices.Equal(ports, []uint16{80, 8082, 9000}) {
			t.Errorf("got ports %v", ports)
		}
		return
	}
	t.Errorf("no echo among %+v", list.Services)
}

// Istiod itself says that we have taken all that it sent.
func TestIstiodSeesUsAsSynced(t *testing.T) {
	s := open(t, "test-http")
	s.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0)
	eventually(t, "syncz to name us as synced", func() error {
		text, err := cluster.Fetch(t.Context(), cluster.Node, "http://127.0.0.1:8080/debug/syncz")
		if err != nil {
			return err
		}
		return synced(text)
	})
}

// synced checks that istiod lists our proxy, and that what it last sent of
// each type is what we last acknowledged.
func synced(text string) error {
	var list []struct {
		Proxy     string
		Resources map[string]struct{ Sent, Acked string }
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return err
	}
	for _, p := range list {
		if !strings.HasPrefix(p.Proxy, "test-http") {
			continue
		}
		for _, want := range []string{
			"envoy.config.cluster.v3.Cluster", "envoy.config.endpoint.v3.ClusterLoadAssignment", "envoy.config.listener.v3.Listener",
			"envoy.config.route.v3.RouteConfiguration", "istio.networking.nds.v1.NameTable", "istio.workload.Address",
		} {
			if r := p.Resources["type.googleapis.com/"+want]; r.Sent == "" || r.Sent != r.Acked {
				return fmt.Errorf("%s of %s: sent %q, acknowledged %q", want, p.Proxy, r.Sent, r.Acked)
			}
		}
		return nil
	}
	return fmt.Errorf("no proxy of ours among %s", text)
}
