// SPDX-License-Identifier: Apache-2.0

package xds_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

var update = flag.Bool("update", false, "write what was said into testdata")

var typeURL = map[string]string{
	"CDS": xds.ClusterType, "EDS": xds.EndpointType, "LDS": xds.ListenerType,
	"RDS": xds.RouteType, "NDS": xds.NameTableType, "WDS": xds.AddressType,
}

func short(url string) string {
	for s, u := range typeURL {
		if u == url {
			return s
		}
	}
	return url
}

// Each file of testdata/ads is a conversation with a server that says what the
// script tells it to, and the transcript of it, with fake time. In the script
//
//	send TYPE NONCE NAME@VERSION... -REMOVED...   is a response
//	watch TYPE NAME...                            is a call of Watch
//	end CODE                                      ends the stream
//	down, up                                      cut and refuse, or allow, connections
//	elapse DURATION                               lets time pass
//	status                                        writes the client's Status
//
// In the transcript, > is a message of the client, < one of the server, and
// sink is what the client hands on. The sink rejects what is called bad…,
// watches the endpoints of each cluster and the routes of each listener.
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/ads/*.txt")
	must(t, err)
	if len(files) == 0 {
		t.Fatal("no conversations")
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			must(t, err)
			if len(a.Files) == 0 || a.Files[0].Name != "script" {
				t.Fatal("want the script first")
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = converse(t, string(a.Files[0].Data)) })
			if *update {
				a.Files = []txtar.File{a.Files[0], {Name: "transcript", Data: []byte(got)}}
				must(t, os.WriteFile(name, txtar.Format(a), 0o644))
				return
			}
			if len(a.Files) != 2 {
				t.Fatal("no transcript; run with -update and read it")
			}
			if diff := cmp.Diff(string(a.Files[1].Data), got); diff != "" {
				t.Errorf("said otherwise (-want +got):\n%s", diff)
			}
		})
	}
}

func converse(t *testing.T, script string) string {
	w := newWorld(t)
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			w.do(strings.Fields(line))
			synctest.Wait()
		}
	}
	w.say("%d warnings", bytes.Count(w.log.Bytes(), []byte("level=WARN")))
	return w.transcript.String()
}

// newWorld starts a client and its server, which have met when it returns.
func newWorld(t *testing.T) *world {
	w := &world{t: t, listener: bufconn.Listen(1 << 20), up: true, clusters: map[string]bool{}, listeners: map[string]bool{}}
	w.serve()
	conn, err := grpc.NewClient("passthrough:///istiod",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(w.dial),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: 50 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 15 * time.Second,
		}}))
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	w.client, err = xds.New(xds.Config{
		Conn: conn, Sink: w,
		Node:   xds.NewNode(xds.NodeConfig{WorkloadName: "lap", Namespace: "external"}),
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.client.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	synctest.Wait()
	return w
}

// A world is the server, the sink and the record of what they saw.
type world struct {
	discoverypb.UnimplementedAggregatedDiscoveryServiceServer
	t        *testing.T
	listener *bufconn.Listener
	server   *grpc.Server
	client   *xds.Client
	log      bytes.Buffer

	mu         sync.Mutex
	up         bool
	conns      []net.Conn
	streams    int
	commands   chan func(discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error // of the current stream
	transcript strings.Builder

	clusters, listeners map[string]bool // owned by Update
}

func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.transcript.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

// serve starts a server that has istiod's ideas of keepalive and of age.
func (w *world) serve() {
	w.server = grpc.NewServer(
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second}))
	discoverypb.RegisterAggregatedDiscoveryServiceServer(w.server, w)
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.server.Serve(w.listener) })
	w.t.Cleanup(func() { w.server.Stop(); wg.Wait() })
}

func (w *world) dial(ctx context.Context, _ string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.up {
		return nil, errors.New("connection refused")
	}
	conn, err := w.listener.DialContext(ctx)
	w.conns = append(w.conns, conn)
	return conn, err
}

// DeltaAggregatedResources records what the client says, and says what the
// script tells it to.
func (w *world) DeltaAggregatedResources(s discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	commands := make(chan func(discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error)
	w.mu.Lock()
	w.streams++
	n := w.streams
	w.commands = commands
	w.mu.Unlock()
	w.say("= stream %d", n)
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.streams == n {
			w.commands = nil
		}
	}()
	received := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			r, err := s.Recv()
			if err != nil {
				received <- err
				return
			}
			w.say("> %s", request(r))
		}
	})
	var err error
	for err == nil {
		select {
		case f := <-commands:
			err = f(s)
		case err = <-received:
			// Not in the transcript: it goes on beside the next stream.
			wg.Wait()
			return err
		}
	}
	w.say("= stream %d ended: %v", n, status.Code(err))
	// Returning is what makes Recv return, so it is not waited for.
	return err
}

// request writes a client's message on one line.
func request(r *discoverypb.DeltaDiscoveryRequest) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", short(r.GetTypeUrl()))
	if r.GetNode() != nil {
		fmt.Fprintf(&b, " node=%s", r.GetNode().GetId())
	}
	if r.GetResponseNonce() != "" {
		fmt.Fprintf(&b, " nonce=%s", r.GetResponseNonce())
	}
	for _, n := range r.GetResourceNamesSubscribe() {
		fmt.Fprintf(&b, " +%s", n)
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		fmt.Fprintf(&b, " -%s", n)
	}
	for _, n := range slices.Sorted(maps.Keys(r.GetInitialResourceVersions())) {
		fmt.Fprintf(&b, " have:%s@%s", n, r.GetInitialResourceVersions()[n])
	}
	if e := r.GetErrorDetail(); e != nil {
		fmt.Fprintf(&b, " error=%v %s", codes.Code(e.GetCode()), e.GetMessage())
	}
	return b.String()
}

// Update implements xds.Sink.
func (w *world) Update(r xds.Response) (bad []xds.Rejected) {
	var good []string
	for _, res := range r.Resources {
		if strings.HasPrefix(res.Name, "bad") {
			bad = append(bad, xds.Rejected{Name: res.Name, Err: errors.New("no such thing")})
			continue
		}
		good = append(good, res.Name)
	}
	w.say("sink %s good=%v bad=%d removed=%v", short(r.TypeURL), good, len(bad), r.Removed)
	track := func(set map[string]bool, url string) {
		for _, n := range good {
			set[n] = true
		}
		for _, n := range r.Removed {
			delete(set, n)
		}
		w.client.Watch(url, slices.Collect(maps.Keys(set)))
	}
	switch r.TypeURL {
	case xds.ClusterType:
		track(w.clusters, xds.EndpointType)
	case xds.ListenerType:
		track(w.listeners, xds.RouteType)
	}
	return bad
}

// do carries out one line of a script.
func (w *world) do(f []string) {
	switch f[0] {
	case "send":
		w.command(func(s discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			return s.Send(response(f))
		}, "< "+strings.Join(f[1:], " "))
	case "end":
		var code codes.Code
		must(w.t, code.UnmarshalJSON([]byte(strconv.Quote(f[1]))))
		w.command(func(discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
			return status.Error(code, "says the script")
		}, "")
	case "watch":
		w.say("watch %s", strings.Join(f[1:], " "))
		w.client.Watch(typeURL[f[1]], f[2:])
	case "up", "down":
		w.say("%s", f[0])
		w.mu.Lock()
		w.up = f[0] == "up"
		for _, c := range w.conns {
			must(w.t, c.Close())
		}
		w.conns = nil
		w.mu.Unlock()
	case "elapse":
		d, err := time.ParseDuration(f[1])
		must(w.t, err)
		w.say("... %s", f[1])
		<-time.NewTimer(d).C
	case "status":
		st := w.client.Status()
		var pending []string
		for _, u := range st.Pending {
			pending = append(pending, short(u))
		}
		w.say("status connected=%v pending=%v reconnects=%d nacks=%d unknown=%d error=%v", st.Connected, pending,
			st.Reconnects, st.NACKs, st.Unknown, status.Code(st.LastError))
		for _, r := range st.Rejected {
			w.say("status rejected %s %s: %s", short(r.TypeURL), r.Name, r.Reason)
		}
	default:
		w.t.Fatalf("script: %q", f)
	}
}

// command has the current stream's handler do something.
func (w *world) command(f func(discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error, say string) {
	w.mu.Lock()
	commands := w.commands
	w.mu.Unlock()
	if commands == nil {
		w.t.Fatalf("script: %q, and there is no stream:\n%s", say, w.transcript.String())
	}
	if say != "" {
		w.say("%s", say)
	}
	commands <- f
}

func response(f []string) *discoverypb.DeltaDiscoveryResponse {
	url, ok := typeURL[f[1]]
	if !ok {
		url = f[1]
	}
	r := &discoverypb.DeltaDiscoveryResponse{TypeUrl: url, Nonce: f[2], SystemVersionInfo: "v"}
	for _, name := range f[3:] {
		if gone, ok := strings.CutPrefix(name, "-"); ok {
			r.RemovedResources = append(r.RemovedResources, gone)
			continue
		}
		name, version, _ := strings.Cut(name, "@")
		res := &discoverypb.Resource{Name: name, Version: version}
		if name == "''" { // a singleton
			res.Name = ""
		}
		if version != "nobody" {
			res.Resource = &anypb.Any{TypeUrl: url}
		}
		r.Resources = append(r.Resources, res)
	}
	return r
}
