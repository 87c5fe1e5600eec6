// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/proxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A rig is a Proxy with a mesh in front of fake sockets.
type rig struct {
	t       *testing.T
	proxy   *proxy.Proxy
	tel     *telemetry.Telemetry
	access  bytes.Buffer
	log     events
	http    httpServer
	servers chan *memConn // the server's side of each connection dialled
	dialErr error         // what dialling fails with
	hang    bool          // dialling waits for its context
	running sync.WaitGroup
}

var errRefused = errors.New("connection refused")

func newRig(t *testing.T, change func(*proxy.Config), set ...any) *rig {
	t.Helper()
	r := &rig{t: t, servers: make(chan *memConn, 8)}
	tel, err := telemetry.New(telemetry.Config{Access: &r.access, AccessFormat: "json"})
	if err != nil {
		t.Fatal(err)
	}
	r.tel = tel
	cfg := proxy.Config{
		Catalog:     published(t, set...),
		Upstream:    upstream.New(upstream.Config{Dial: r.dialer("mesh")}),
		HTTP:        &r.http,
		Telemetry:   tel,
		Passthrough: r.dialer("outside"),
	}
	if change != nil {
		change(&cfg)
	}
	r.proxy = proxy.New(cfg)
	return r
}

// published is a mesh of clusters, listeners, and a port range that it owns.
func published(t *testing.T, set ...any) *catalog.Catalog {
	t.Helper()
	var clusters []*resource.Cluster
	var listeners []*resource.Listener
	var workloads []*resource.Workload
	for _, v := range set {
		switch v := v.(type) {
		case *resource.Cluster:
			clusters = append(clusters, v)
		case *resource.Listener:
			listeners = append(listeners, v)
		case *resource.Workload:
			workloads = append(workloads, v)
		default:
			t.Fatalf("cannot publish %T", v)
		}
	}
	c := catalog.New()
	c.SetClusters(clusters, nil)
	c.SetListeners(listeners, nil)
	c.SetNames(&resource.NameTable{})
	if workloads != nil {
		c.SetAddresses(workloads, nil, nil)
	}
	c.Publish()
	if c.Snapshot() == nil {
		t.Fatal("the mesh was not published:", c.Pending())
	}
	return c
}

func (r *rig) dialer(kind string) upstream.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		r.log.add("dial " + kind + " " + network + " " + address)
		if r.hang {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if r.dialErr != nil {
			return nil, r.dialErr
		}
		app, ours := newPair("server", &r.log)
		r.servers <- app
		return ours, nil
	}
}

// connect serves a flow to dst and returns the client's side of it.
func (r *rig) connect(dst string) *flow {
	return r.connectContext(r.t.Context(), dst)
}

func (r *rig) connectContext(ctx context.Context, dst string) *flow {
	f := &flow{dst: netip.MustParseAddrPort(dst), done: make(chan struct{}), log: &r.log, rejected: make(chan struct{})}
	f.client, f.ours = newPair("client", &r.log)
	r.running.Go(func() { r.proxy.ServeTCP(ctx, f) })
	return f
}

// record waits for the flows to end and returns the one record.
func (r *rig) record() map[string]any {
	r.t.Helper()
	records := r.records()
	if len(records) != 1 {
		r.t.Fatalf("%d records, want 1: %v", len(records), records)
	}
	return records[0]
}

func (r *rig) records() (all []map[string]any) {
	r.t.Helper()
	r.running.Wait()
	r.tel.Flush()
	for line := range strings.Lines(r.access.String()) {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			r.t.Fatal(err)
		}
		all = append(all, m)
	}
	if n := r.tel.Active(); n != 0 {
		r.t.Errorf("%d flows count as active", n)
	}
	return all
}

func (r *rig) expectReason(want string) {
	r.t.Helper()
	m := r.record()
	got, _ := m["reason"].(string)
	if got != want {
		r.t.Errorf("reason %q, want %q (record %v)", got, want, m)
	}
}

func (r *rig) expectEvents(want ...string) {
	r.t.Helper()
	r.running.Wait()
	if got := r.log.all(); !slices.Equal(got, want) {
		r.t.Errorf("events:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// A flow is a captured connection whose client is a memConn.
type flow struct {
	dst          netip.AddrPort
	done         chan struct{}
	rejected     chan struct{} // closed by Reject
	client, ours *memConn
	acceptErr    error
	log          *events
}

func (f *flow) Source() netip.AddrPort      { return netip.MustParseAddrPort("192.0.0.2:40000") }
func (f *flow) Destination() netip.AddrPort { return f.dst }
func (f *flow) Done() <-chan struct{}       { return f.done }

func (f *flow) Accept() (proxy.Conn, error) {
	f.log.add("accept")
	if f.acceptErr != nil {
		return nil, f.acceptErr
	}
	return f.ours, nil
}

func (f *flow) Reject() {
	f.log.add("reject")
	close(f.rejected)
	f.client.Abort()
}

// httpServer keeps what it is given and reads it to the end.
type httpServer struct {
	got  []httpproxy.Downstream
	read []string
}

func (h *httpServer) Serve(_ context.Context, c httpproxy.Conn, in httpproxy.Downstream) {
	b, _ := io.ReadAll(c)
	h.got = append(h.got, in)
	h.read = append(h.read, string(b))
	_ = c.Close()
}

// Parts of a mesh.

func static(name string, endpoints ...string) *resource.Cluster {
	c := &resource.Cluster{Name: name, Endpoints: &resource.Endpoints{Name: name}}
	l := resource.Locality{}
	for _, e := range endpoints {
		l.Endpoints = append(l.Endpoints, &resource.Endpoint{Address: netip.MustParseAddrPort(e), Weight: 1})
	}
	if endpoints != nil {
		c.Endpoints.Localities = append(c.Endpoints.Localities, l)
	}
	return c
}

func to(clusters ...string) *resource.TCPProxy {
	t := &resource.TCPProxy{}
	for _, c := range clusters {
		t.Clusters = append(t.Clusters, resource.WeightedCluster{Name: c, Weight: 1})
	}
	return t
}

func listener(addr string, chains ...*resource.FilterChain) *resource.Listener {
	return &resource.Listener{
		Name: addr, Addresses: []netip.AddrPort{netip.MustParseAddrPort(addr)}, Outbound: true,
		Chains: chains, ContinueOnTimeout: true,
	}
}

func virtual(chain *resource.FilterChain) *resource.Listener {
	l := listener("0.0.0.0:15001")
	l.Virtual, l.Default = true, chain
	return l
}

func tcpChain(t *resource.TCPProxy) *resource.FilterChain { return &resource.FilterChain{TCP: t} }

func send(t *testing.T, c io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Errorf("write %q: %v", s, err)
	}
}

func expect(t *testing.T, c io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Errorf("read %q, %v; want %q", b[:n], err, want)
	}
}

func expectEnd(t *testing.T, c io.Reader, want error) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Errorf("read %d bytes, %v; want %v", n, err, want)
	}
}
