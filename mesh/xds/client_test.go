// SPDX-License-Identifier: Apache-2.0

package xds_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

// Two responses of a type before the first is answered: each is answered
// under its own nonce and in order, the server drops the first answer as
// stale, and since no answer carries a subscription nothing is lost with it.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for n := range 20 {
			line := fmt.Sprintf("send CDS %d c%d@", n, n)
			w.do(strings.Fields(line))
		}
		synctest.Wait()
		var answers, subscribed []string
		for line := range strings.Lines(w.transcript.String()) {
			f := strings.Fields(line)
			switch {
			case f[0] == ">" && f[1] == "CDS" && strings.HasPrefix(f[2], "nonce="):
				answers = append(answers, strings.Join(f[2:], " "))
			case f[0] == ">" && f[1] == "EDS":
				subscribed = append(subscribed, f[2:]...)
			}
		}
		slices.Sort(subscribed)
		var wantAnswers, wantNames []string
		for n := range 20 {
			wantAnswers = append(wantAnswers, fmt.Sprintf("nonce=%d", n))
			wantNames = append(wantNames, fmt.Sprintf("+c%d", n))
		}
		slices.Sort(wantNames)
		if diff := cmp.Diff(wantAnswers, answers); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(wantNames, subscribed); diff != "" {
			t.Errorf("subscriptions, each once (-want +got):\n%s", diff)
		}
	})
}

// refusing is a channel on which no stream can be opened.
type refusing struct{ attempts int }

func (r *refusing) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	r.attempts++
	code := codes.Unavailable
	if r.attempts > 10 {
		code = codes.Unauthenticated
	}
	return nil, status.Error(code, "no")
}

func (*refusing) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return status.Error(codes.Unimplemented, "no")
}

// A server that is away for an hour is asked every 15 s at most, and the log
// has a line for each kind of trouble, not for each attempt.
func TestLongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &refusing{}
		var log bytes.Buffer
		c, err := xds.New(xds.Config{
			Conn: conn, Sink: &sink{}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Node: xds.NewNode(xds.NodeConfig{WorkloadName: "lap", Namespace: "external"}),
		})
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		must(t, c.Run(ctx))
		if conn.attempts < 240 || conn.attempts > 500 {
			t.Errorf("%d attempts in an hour", conn.attempts)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines logged, want one for each of two kinds:\n%s", n, &log)
		}
		if st := c.Status(); st.Connected || status.Code(st.LastError) != codes.Unauthenticated || st.LastErrorAt.IsZero() {
			t.Errorf("status %+v", st)
		}
	})
}

// A sink hands responses to a test and has it say which names to watch.
type sink struct {
	client    *xds.Client
	responses chan xds.Response
	clusters  map[string]bool
}

func (s *sink) Update(r xds.Response) []xds.Rejected {
	if r.TypeURL == xds.ClusterType {
		for _, res := range r.Resources {
			s.clusters[res.Name] = true
		}
		for _, n := range r.Removed {
			delete(s.clusters, n)
		}
		var names []string
		for n := range s.clusters {
			names = append(names, n)
		}
		s.client.Watch(xds.EndpointType, names)
	}
	s.responses <- r
	return nil
}

// next returns the next response of a type, as its resources' names.
func (s *sink) next(t *testing.T, url string) (names, removed []string) {
	t.Helper()
	for {
		select {
		case r := <-s.responses:
			if r.TypeURL != url {
				continue
			}
			for _, res := range r.Resources {
				names = append(names, res.Name)
			}
			slices.Sort(names)
			return names, r.Removed
		case <-t.Context().Done():
			t.Fatal("no response")
		}
	}
}

// A real management server, which has its own reading of the protocol: unlike
// istiod it compares the versions it is told and sends only what differs.
func TestGoControlPlane(t *testing.T) {
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	node := xds.NewNode(xds.NodeConfig{WorkloadName: "lap", Namespace: "external"})
	set := func(version string, clusters ...string) {
		var cs, es []types.Resource
		for _, name := range clusters {
			name, config, _ := strings.Cut(name, "=")
			cs = append(cs, &clusterpb.Cluster{
				Name: name, AltStatName: config,
				ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
				EdsClusterConfig:     &clusterpb.Cluster_EdsClusterConfig{EdsConfig: &corepb.ConfigSource{ConfigSourceSpecifier: &corepb.ConfigSource_Ads{}}},
			})
			es = append(es, &endpointpb.ClusterLoadAssignment{ClusterName: name})
		}
		snapshot, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{resource.ClusterType: cs, resource.EndpointType: es})
		must(t, err)
		must(t, snapshots.SetSnapshot(t.Context(), node.GetId(), snapshot))
	}
	serve := func() (*bufconn.Listener, func()) {
		l := bufconn.Listen(1 << 20)
		g := grpc.NewServer()
		ctx, cancel := context.WithCancel(t.Context())
		discoverypb.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(ctx, snapshots, nil))
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.Serve(l) })
		return l, func() { cancel(); g.Stop(); wg.Wait() }
	}
	var mu sync.Mutex
	listener, stop := serve()
	conn, err := grpc.NewClient("passthrough:///ads", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			mu.Lock()
			l := listener
			mu.Unlock()
			return l.DialContext(ctx)
		}))
	must(t, err)
	defer conn.Close()
	s := &sink{responses: make(chan xds.Response, 100), clusters: map[string]bool{}}
	s.client, err = xds.New(xds.Config{Conn: conn, Node: node, Sink: s})
	must(t, err)

	set("1", "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.client.Run(ctx) })
	defer func() { cancel(); wg.Wait(); stop() }()

	expect := func(what, url string, want, wantRemoved []string) {
		t.Helper()
		got, removed := s.next(t, url)
		if !slices.Equal(got, want) || !slices.Equal(removed, wantRemoved) {
			t.Fatalf("%s: got %v, removed %v; want %v, removed %v", what, got, removed, want, wantRemoved)
		}
	}
	// The server tells of endpoints that are gone in a response of their own.
	expectEndpoints := func(what string, want ...string) {
		t.Helper()
		var got []string
		for len(got) == 0 {
			got, _ = s.next(t, xds.EndpointType)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s: got %v, want %v", what, got, want)
		}
	}
	expect("first clusters", xds.ClusterType, []string{"a", "b", "c"}, nil)
	expectEndpoints("their endpoints", "a", "b", "c")
	set("2", "a", "b=changed", "d")
	expect("a change", xds.ClusterType, []string{"b", "d"}, []string{"c"})
	expectEndpoints("the endpoints of what is new", "d")

	// Away, and back with one cluster more, one less and one changed.
	stop()
	set("3", "a", "b=again", "e")
	l, again := serve()
	mu.Lock()
	listener, stop = l, again
	mu.Unlock()
	expect("the difference, after a restart", xds.ClusterType, []string{"b", "e"}, []string{"d"})
	expectEndpoints("the endpoints of that", "e")
	if st := s.client.Status(); !st.Connected || st.Reconnects != 1 || st.NACKs != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestNewChecks(t *testing.T) {
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	node := xds.NewNode(xds.NodeConfig{WorkloadName: "lap", Namespace: "external"})
	good := xds.Config{Conn: conn, Node: node, Sink: &sink{}}
	if _, err := xds.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*xds.Config){
		"no connection": func(c *xds.Config) { c.Conn = nil },
		"no sink":       func(c *xds.Config) { c.Sink = nil },
		"no node":       func(c *xds.Config) { c.Node = nil },
		"node that would split in five": func(c *xds.Config) {
			c.Node = xds.NewNode(xds.NodeConfig{WorkloadName: "a~b", Namespace: "external"})
		},
		"node without an address": func(c *xds.Config) { c.Node = &corepb.Node{Id: "sidecar~~a.b~c"} },
		"node that cannot be encoded": func(c *xds.Config) {
			c.Node = xds.NewNode(xds.NodeConfig{Namespace: "external", Labels: map[string]string{"a": "\xff"}})
		},
		"type twice": func(c *xds.Config) { c.Types = []xds.Type{{URL: "a"}, {URL: "a"}} },
		"no type":    func(c *xds.Config) { c.Types = []xds.Type{{}} },
	} {
		cfg := good
		change(&cfg)
		if _, err := xds.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What a real istiod was asked with, and how it wants each value.
func TestNode(t *testing.T) {
	n := xds.NewNode(xds.NodeConfig{
		Name: "lap", Namespace: "external", ServiceAccount: "test-http", WorkloadName: "test-http",
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("fe80::1%eth0")},
		ClusterID: "Kubernetes", Network: "network2", MeshID: "cluster.local",
		Labels: map[string]string{"app": "test-http"}, AutoRegisterGroup: "test-http",
		Locality: "eu/eu-1", Metadata: map[string]string{"MESH_ID": "other", "X": "y"},
	})
	var want corepb.Node
	must(t, protojson.Unmarshal([]byte(`{
		"id": "sidecar~192.0.2.2~lap.external~external.svc.cluster.local",
		"cluster": "test-http.external",
		"locality": {"region": "eu", "zone": "eu-1"},
		"metadata": {
			"NAME": "lap", "NAMESPACE": "external", "SERVICE_ACCOUNT": "test-http", "WORKLOAD_NAME": "test-http",
			"CLUSTER_ID": "Kubernetes", "NETWORK": "network2", "MESH_ID": "other", "ISTIO_VERSION": "1.31.0",
			"INSTANCE_IPS": "192.0.2.2,fe80::1", "AUTO_REGISTER_GROUP": "test-http",
			"INTERCEPTION_MODE": "REDIRECT", "DNS_CAPTURE": "true", "DNS_AUTO_ALLOCATE": "true", "HTTP10": "1",
			"LABELS": {"app": "test-http"}, "X": "y"
		}}`), &want))
	if diff := cmp.Diff(protojson.Format(&want), protojson.Format(n)); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
}
