// SPDX-License-Identifier: Apache-2.0

package telemetry_test

import (
	"errors"
	"flag"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var self = telemetry.Workload{
	Name: "laptop", Namespace: "external", App: "laptop", Version: "v1", Cluster: "Kubernetes",
	CanonicalName: "laptop", CanonicalRevision: "v1",
	Principal: func() string { return "spiffe://cluster.local/ns/external/sa/test-http" },
}

var (
	echo = &resource.Cluster{
		Name: "outbound|80||echo.testing.svc.cluster.local",
		Istio: resource.IstioMeta{Services: []resource.ServiceRef{
			{Host: "echo.testing.svc.cluster.local", Name: "echo", Namespace: "testing"},
		}},
	}
	passthrough = &resource.Cluster{Name: "PassthroughCluster", Discovery: resource.OriginalDst}
	pod         = &resource.Endpoint{
		Address:  netip.MustParseAddrPort("10.0.0.9:8080"),
		Workload: "echo-1;testing;echo;v3;Kubernetes",
	}
)

func newTelemetry(t testing.TB, cfg telemetry.Config) (*telemetry.Telemetry, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	cfg.Registerer, cfg.Workload = reg, self
	tel, err := telemetry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tel, reg
}

// exposition returns the metrics whose names begin with one of the prefixes,
// without comments.
func exposition(t testing.TB, reg *prometheus.Registry, prefixes ...string) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var b strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				b.WriteString(line)
				break
			}
		}
	}
	return b.String()
}

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", name), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func request(change func(*telemetry.Record)) *telemetry.Record {
	r := &telemetry.Record{
		Start: time.Now(), Duration: 7900 * time.Microsecond, Protocol: telemetry.HTTP,
		Src: netip.MustParseAddrPort("192.0.0.2:40000"), Dst: netip.MustParseAddrPort("10.96.0.10:80"),
		Cluster: echo, Endpoint: pod, Upstream: "10.0.0.9:8080", MTLS: true,
		PeerID: "spiffe://cluster.local/ns/testing/sa/default",
		Method: "GET", Host: "echo.testing", Path: "/a?token=secret", Status: 200, Route: "default", Tries: 1,
		RequestID: "6f9d", BytesReceived: 3, BytesSent: 40, RequestBytes: 100, ResponseBytes: 260,
	}
	if change != nil {
		change(r)
	}
	return r
}

func flow(change func(*telemetry.Record)) *telemetry.Record {
	r := &telemetry.Record{
		Start: time.Now(), Duration: 1500 * time.Millisecond, Protocol: telemetry.TCP,
		Src: netip.MustParseAddrPort("192.0.0.2:40000"), Dst: netip.MustParseAddrPort("10.96.0.10:9000"),
		Cluster: echo, Endpoint: pod, Upstream: "10.0.0.9:9000", MTLS: true,
		PeerID: "spiffe://cluster.local/ns/testing/sa/default",
	}
	if change != nil {
		change(r)
	}
	return r
}

func TestRequestMetrics(t *testing.T) {
	tel, reg := newTelemetry(t, telemetry.Config{Version: "1.31.0"})
	tel.Request(request(nil))
	tel.Request(request(nil))
	tel.Request(request(func(r *telemetry.Record) { // gRPC, with messages
		r.Protocol, r.GRPCStatus, r.RequestMessages, r.ResponseMessages = telemetry.GRPC, "0", 2, 5
	}))
	tel.Request(request(func(r *telemetry.Record) { // a server's nonsense stays bounded
		r.Protocol, r.GRPCStatus = telemetry.GRPC, "surprise"
	}))
	tel.Request(request(func(r *telemetry.Record) { // nobody there
		r.Endpoint, r.Upstream, r.MTLS, r.PeerID, r.Status = nil, "", false, "", 503
		r.Fail(telemetry.NoEndpoint, errors.New("no healthy upstream"))
	}))
	tel.Request(request(func(r *telemetry.Record) { // not the mesh's
		r.Cluster, r.Endpoint, r.MTLS, r.PeerID = passthrough, nil, false, ""
		r.Host, r.Route = "example.com", "allow_any"
	}))
	tel.Request(request(func(r *telemetry.Record) { // refused by policy
		r.Cluster, r.Endpoint, r.MTLS, r.PeerID, r.Upstream = nil, nil, false, "", ""
		r.Host, r.Route, r.Status, r.Reason, r.Flags = "example.com", "block_all", 502, telemetry.Blackhole, "NR"
	}))
	golden(t, "requests.prom", exposition(t, reg, "istio_requests_total", "istio_request_messages", "istio_response_messages", "istio_build", "nasp_tun_flows_total"))
}

func TestRequestHistograms(t *testing.T) {
	tel, reg := newTelemetry(t, telemetry.Config{})
	tel.Request(request(nil))
	tel.Request(request(func(r *telemetry.Record) { r.Duration = 700 * time.Microsecond })) // 0 ms, as Envoy
	got := exposition(t, reg, "istio_request_duration", "istio_request_bytes", "istio_response_bytes")
	// Labels are those of TestRequestMetrics; only le and the values matter here.
	var b strings.Builder
	for line := range strings.Lines(got) {
		name, rest, _ := strings.Cut(line, "{")
		value := line[strings.LastIndexByte(line, ' '):]
		if _, le, ok := strings.Cut(rest, `,le="`); ok {
			le, _, _ = strings.Cut(le, `"`)
			name += " le=" + le
		}
		b.WriteString(name + value)
	}
	golden(t, "histograms.prom", b.String())
}

func TestFlowMetrics(t *testing.T) {
	tel, reg := newTelemetry(t, telemetry.Config{})

	r := flow(nil)
	x := tel.Opened(r)
	x.Received(100)
	x.Sent(1000)
	// Bytes show while the flow lives.
	golden(t, "flow_open.prom", exposition(t, reg, "istio_tcp", "nasp_tun_tcp_flows_active"))
	x.Received(11)
	r.Fail(telemetry.UpstreamReset, errors.New("connection reset by peer"))
	tel.Closed(r)
	if r.BytesReceived != 111 || r.BytesSent != 1000 {
		t.Errorf("record has %d in, %d out, want 111 and 1000", r.BytesReceived, r.BytesSent)
	}

	tel.Closed(flow(func(r *telemetry.Record) { // never opened
		r.Endpoint, r.Upstream, r.MTLS, r.PeerID = nil, "", false, ""
		r.Fail(telemetry.NoEndpoint, nil)
	}))
	tel.Closed(flow(func(r *telemetry.Record) { // UDP has no Istio metrics
		r.Protocol, r.Cluster, r.Endpoint = telemetry.UDP, nil, nil
		r.Fail(telemetry.RefusedUDP, nil)
	}))
	golden(t, "flow_closed.prom", exposition(t, reg, "istio_tcp", "nasp_tun_flows_total", "nasp_tun_tcp_flows_active"))
}

func TestLabelSetsAreBounded(t *testing.T) {
	tel, reg := newTelemetry(t, telemetry.Config{})
	for i := range 3 * telemetry.MaxForeign {
		tel.Request(request(func(r *telemetry.Record) {
			r.Cluster, r.Endpoint, r.MTLS, r.PeerID = passthrough, nil, false, ""
			r.Host = "host-" + string(rune('a'+i%26)) + strings.Repeat("x", i/26)
		}))
	}
	got := exposition(t, reg, "istio_requests_total")
	if n, want := strings.Count(got, "\n"), telemetry.MaxForeign+1; n != want {
		t.Errorf("%d series for hosts outside the mesh, want %d", n, want)
	}
	if !strings.Contains(exposition(t, reg, "nasp_tun_telemetry_overflow_total"), `{limit="hosts"} 512`) {
		t.Error("overflow by hosts not counted:", exposition(t, reg, "nasp_tun_telemetry_overflow_total"))
	}

	for i := range 2 * telemetry.MaxSeries {
		tel.Closed(flow(func(r *telemetry.Record) {
			r.MTLS, r.PeerID = false, ""
			r.Endpoint = &resource.Endpoint{Workload: strings.Repeat("w", i%64) + ";" + strings.Repeat("n", i/64)}
		}))
	}
	got = exposition(t, reg, "istio_tcp_connections_closed_total")
	if n, want := strings.Count(got, "\n"), telemetry.MaxSeries+1; n != want {
		t.Errorf("%d series of flows, want %d", n, want)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := telemetry.New(telemetry.Config{Access: os.Stderr, AccessFormat: "xml"}); err == nil {
		t.Error("an unknown access log format is accepted")
	}
	reg := prometheus.NewRegistry()
	if _, err := telemetry.New(telemetry.Config{Registerer: reg}); err != nil {
		t.Fatal(err)
	}
	if _, err := telemetry.New(telemetry.Config{Registerer: reg}); err == nil {
		t.Error("metrics registered twice in one registry")
	}
}

func TestReasons(t *testing.T) {
	seen := map[telemetry.Reason]bool{}
	for _, r := range telemetry.Reasons() {
		if seen[r.Reason] || r.Text == "" || r.Flag == "" || r.Reason.Flag() != r.Flag {
			t.Errorf("bad row %+v", r)
		}
		seen[r.Reason] = true
		if telemetry.Known(string(r.Reason), telemetry.OK) != r.Reason {
			t.Errorf("%s is not known", r.Reason)
		}
	}
	if got := telemetry.Known("whatever", telemetry.Connect); got != telemetry.Connect {
		t.Errorf("an unknown word gives %q", got)
	}
	if got := telemetry.OK.String() + telemetry.OK.Flag(); got != "--" {
		t.Errorf("OK reads %q", got)
	}
}
