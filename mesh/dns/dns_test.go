// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/dns"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// snapshot publishes a mesh with these names: "host addr addr...".
func snapshot(t testing.TB, names ...string) func() *catalog.Snapshot {
	t.Helper()
	table := &resource.NameTable{Names: map[string]*resource.Name{}}
	for _, n := range names {
		f := strings.Fields(n)
		name := &resource.Name{Host: f[0], Registry: "External"}
		if label := strings.Split(f[0], "."); strings.HasSuffix(f[0], ".svc.cluster.local") {
			name.Registry, name.ShortName, name.Namespace = "Kubernetes", label[0], label[1]
		}
		for _, a := range f[1:] {
			name.Addresses = append(name.Addresses, netip.MustParseAddr(a))
		}
		table.Names[f[0]] = name
	}
	c := catalog.New()
	c.SetNode("external", "external.svc.cluster.local")
	c.SetClusters(nil, nil)
	c.SetListeners(nil, nil)
	c.SetNames(table)
	c.Publish()
	if c.Snapshot() == nil {
		t.Fatal("the mesh was not published")
	}
	return c.Snapshot
}

var meshNames = []string{
	"echo.testing.svc.cluster.local 10.96.0.10",
	"dual.testing.svc.cluster.local 10.96.0.11 fd00::11",
	"six.testing.svc.cluster.local fd00::12",
	"www.external.svc.cluster.local 10.96.0.13",
	"pods.testing.svc.cluster.local 10.0.0.1 10.0.0.2 10.0.0.3",
	"api.example.org 240.240.0.1",
	"*.wild.example.org",
}

// world answers every forwarded question with 192.0.2.1 and keeps its name.
type world struct{ asked []string }

func (w *world) forward(_ context.Context, q *mdns.Msg, tcp bool) (*mdns.Msg, error) {
	w.asked = append(w.asked, fmt.Sprint(q.Question[0].Name, " ", mdns.TypeToString[q.Question[0].Qtype], " ", tcp))
	a := new(mdns.Msg).SetReply(q)
	rr, err := mdns.NewRR(q.Question[0].Name + " 300 IN A 192.0.2.1")
	if err != nil {
		return nil, err
	}
	a.Answer = []mdns.RR{rr}
	return a, nil
}

func query(name string, qtype uint16, change ...func(*mdns.Msg)) []byte {
	m := new(mdns.Msg).SetQuestion(mdns.Fqdn(name), qtype)
	m.Id = 0x1234
	for _, f := range change {
		f(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func exchange(t testing.TB, s *dns.Server, q []byte, tcp bool) *mdns.Msg {
	t.Helper()
	b, err := s.Exchange(t.Context(), q, tcp)
	if err != nil {
		t.Fatal(err)
	}
	if b == nil {
		return nil
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer %x: %v", b, err)
	}
	return m
}

// brief is an answer as text: the code, then the data in order.
func brief(m *mdns.Msg) string {
	if m == nil {
		return "nothing"
	}
	parts := []string{mdns.RcodeToString[m.Rcode]}
	var data []string
	for _, rr := range m.Answer {
		data = append(data, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(data)
	return strings.Join(append(parts, data...), " ")
}

func TestAnswers(t *testing.T) {
	const forwarded = "NOERROR 192.0.2.1"
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"echo.testing.svc.cluster.local", mdns.TypeA, "NOERROR 10.96.0.10"},
		{"echo.testing", mdns.TypeA, "NOERROR 10.96.0.10"},
		{"ECHO.TestinG", mdns.TypeA, "NOERROR 10.96.0.10"},
		{"echo.testing", mdns.TypeANY, "NOERROR 10.96.0.10"},
		{"dual.testing", mdns.TypeA, "NOERROR 10.96.0.11"},
		{"dual.testing", mdns.TypeAAAA, "NOERROR fd00::11"},
		{"dual.testing", mdns.TypeANY, "NOERROR 10.96.0.11 fd00::11"},
		{"six.testing", mdns.TypeA, "NOERROR"},
		{"pods.testing", mdns.TypeA, "NOERROR 10.0.0.1 10.0.0.2 10.0.0.3"},
		{"www", mdns.TypeA, "NOERROR 10.96.0.13"},
		{"api.example.org", mdns.TypeA, "NOERROR 240.240.0.1"},

		// Whatever a known name does not have is empty at once (rust#31665,
		// tailscale#5308: clients wait five seconds for a dropped AAAA).
		{"echo.testing", mdns.TypeAAAA, "NOERROR"},
		{"echo.testing", mdns.TypeHTTPS, "NOERROR"},
		{"echo.testing", mdns.TypeSVCB, "NOERROR"},
		{"echo.testing", mdns.TypeTXT, "NOERROR"},
		{"echo.testing", mdns.TypeSRV, "NOERROR"},

		// A name without any address is the world's.
		{"a.wild.example.org", mdns.TypeA, forwarded},
		{"example.com", mdns.TypeA, forwarded},
		{"nobody.testing", mdns.TypeA, forwarded},
		{"10.0.96.10.in-addr.arpa", mdns.TypePTR, forwarded},

		// Search domains of the host.
		{"echo.testing.corp.example", mdns.TypeA, "NXDOMAIN"},
		{"echo.testing.corp.example", mdns.TypeAAAA, "NXDOMAIN"},
		{"Echo.Testing.LAN", mdns.TypeA, "NXDOMAIN"},
		{"host.nasp-tun.internal.lan", mdns.TypeA, "NXDOMAIN"},
		{"www.corp.example", mdns.TypeA, forwarded}, // the corporation's, not ours
		{"nobody.testing.lan", mdns.TypeA, forwarded},

		{"host.nasp-tun.internal", mdns.TypeA, "NOERROR 192.0.0.3"},
		{"host.nasp-tun.internal", mdns.TypeAAAA, "NOERROR"},
		{"use-application-dns.net", mdns.TypeA, "NXDOMAIN"},
		{"echo.testing", mdns.TypeAXFR, "REFUSED"},
	} {
		t.Run(tt.name+" "+mdns.TypeToString[tt.qtype], func(t *testing.T) {
			var w world
			s := dns.New(dns.Config{
				Snapshot: snapshot(t, meshNames...), Forward: w.forward,
				Search: []string{"corp.example", "LAN."},
				Local:  map[string]netip.Addr{"host.nasp-tun.internal": netip.MustParseAddr("192.0.0.3")},
			})
			a := exchange(t, s, query(tt.name, tt.qtype), false)
			if got := brief(a); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if forwards := len(w.asked); forwards != strings.Count(tt.want, "192.0.2.1") {
				t.Errorf("forwarded %d times", forwards)
			}
			if a.Id != 0x1234 || !a.Response || !a.RecursionDesired || a.Question[0].Name != mdns.Fqdn(tt.name) {
				t.Errorf("the header or question does not fit: %v", a)
			}
			for _, rr := range a.Answer {
				if tt.want != forwarded && rr.Header().Ttl > 10 {
					t.Errorf("TTL %d", rr.Header().Ttl)
				}
			}
		})
	}
}

func TestBeforeTheFirstSnapshotEverythingIsForwarded(t *testing.T) {
	var w world
	s := dns.New(dns.Config{Snapshot: func() *catalog.Snapshot { return nil }, Forward: w.forward})
	if got := brief(exchange(t, s, query("echo.testing", mdns.TypeA), true)); got != "NOERROR 192.0.2.1" {
		t.Error(got)
	}
	if want := []string{"echo.testing. A true"}; !slices.Equal(w.asked, want) {
		t.Errorf("forwarded %v, want %v", w.asked, want)
	}
}

func TestBadMessages(t *testing.T) {
	good := query("echo.testing", mdns.TypeA)
	edit := func(f func([]byte) []byte) []byte { return f(slices.Clone(good)) }
	for _, tt := range []struct {
		name string
		q    []byte
		want string
	}{
		{"empty", nil, "nothing"},
		{"short", good[:11], "nothing"},
		{"an answer", edit(func(b []byte) []byte { b[2] |= 0x80; return b }), "nothing"},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FORMERR"},
		{"two questions", query("echo.testing", mdns.TypeA, func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR"},
		{"cut", good[:len(good)-3], "FORMERR"},
		{"pointer to itself", append(slices.Clone(good[:12]), 0xc0, 12, 0, 1, 0, 1), "FORMERR"},
		{"status", edit(func(b []byte) []byte { b[2] |= mdns.OpcodeStatus << 3; return b }), "NOTIMP"},
		{"update", edit(func(b []byte) []byte { b[2] |= mdns.OpcodeUpdate << 3; return b }), "NOTIMP"},
		{"edns version 1", query("echo.testing", mdns.TypeA, func(m *mdns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }), "BADVERS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: new(world).forward})
			a := exchange(t, s, tt.q, false)
			got := brief(a)
			if a != nil && a.Rcode == mdns.RcodeBadVers {
				got = "BADVERS" // mdns names it BADSIG, which has the same number
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if a != nil && (a.Id != 0x1234 || !a.Response) {
				t.Errorf("header %v", a.MsgHdr)
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: new(world).forward})
	a := exchange(t, s, query("echo.testing", mdns.TypeA, func(m *mdns.Msg) { m.SetEdns0(4096, true) }), false)
	if opt := a.IsEdns0(); opt == nil || opt.UDPSize() != 1232 || !opt.Do() {
		t.Errorf("answer to EDNS: %v", opt)
	}
	if a := exchange(t, s, query("echo.testing", mdns.TypeA), false); a.IsEdns0() != nil {
		t.Error("EDNS in the answer to a client that has none")
	}
}

func TestLargeAnswersAreCutForUDP(t *testing.T) {
	many := "many.testing.svc.cluster.local"
	for i := range 200 {
		many += fmt.Sprintf(" 10.1.0.%d", i)
	}
	s := dns.New(dns.Config{Snapshot: snapshot(t, many), Forward: new(world).forward})
	for _, tt := range []struct {
		name     string
		edns     uint16
		tcp      bool
		limit    int
		complete bool
	}{
		{"plain UDP", 0, false, 512, false},
		{"EDNS 1232", 1232, false, 1232, false},
		{"EDNS of nonsense", 1, false, 512, false},
		{"EDNS 65535", 65535, false, 4096, true},
		{"TCP", 0, true, 65535, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := query("many.testing", mdns.TypeA, func(m *mdns.Msg) {
				if tt.edns > 0 {
					m.SetEdns0(tt.edns, false)
				}
			})
			b, err := s.Exchange(t.Context(), q, tt.tcp)
			if err != nil || len(b) > tt.limit {
				t.Errorf("%d bytes, limit %d, err %v", len(b), tt.limit, err)
			}
			a := exchange(t, s, q, tt.tcp)
			if complete := len(a.Answer) == 200; complete != tt.complete || a.Truncated == tt.complete || len(a.Answer) == 0 {
				t.Errorf("%d answers, truncated %v", len(a.Answer), a.Truncated)
			}
		})
	}
}

func TestAddressesAreShuffled(t *testing.T) {
	s := dns.New(dns.Config{Snapshot: snapshot(t, meshNames...), Forward: new(world).forward})
	first := map[string]bool{}
	for range 200 { // the odds that one of three is never first: 3 * (2/3)^200
		first[exchange(t, s, query("pods.testing", mdns.TypeA), false).Answer[0].(*mdns.A).A.String()] = true
	}
	if len(first) != 3 {
		t.Errorf("first come only %v", first)
	}
}

func TestForwardFailures(t *testing.T) {
	s := dns.New(dns.Config{
		Snapshot: snapshot(t, meshNames...),
		Forward:  func(context.Context, *mdns.Msg, bool) (*mdns.Msg, error) { return nil, errors.New("network is down") },
	})
	if got := brief(exchange(t, s, query("example.com", mdns.TypeA), false)); got != "SERVFAIL" {
		t.Error(got)
	}
	if st := s.Stats(); st.Forwarded != 1 || st.Failed != 1 || st.Queries != 1 {
		t.Errorf("%+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a, err := s.Exchange(ctx, query("example.com", mdns.TypeA), false); a != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %x, %v", a, err)
	}
}

func TestForwardsAreBounded(t *testing.T) {
	var asked atomic.Int64
	started := make(chan struct{}, dns.MaxForwards)
	release := make(chan struct{})
	s := dns.New(dns.Config{
		Snapshot: snapshot(t, meshNames...),
		Forward: func(_ context.Context, q *mdns.Msg, _ bool) (*mdns.Msg, error) {
			asked.Add(1)
			started <- struct{}{}
			<-release
			return new(mdns.Msg).SetReply(q), nil
		},
	})
	done := make(chan error, dns.MaxForwards)
	for range dns.MaxForwards {
		go func() {
			_, err := s.Exchange(t.Context(), query("example.com", mdns.TypeA), false)
			done <- err
		}()
	}
	for range dns.MaxForwards {
		<-started
	}
	if got := brief(exchange(t, s, query("example.com", mdns.TypeA), false)); got != "SERVFAIL" {
		t.Errorf("one too many gets %s", got)
	}
	// What we know ourselves needs nobody.
	if got := brief(exchange(t, s, query("echo.testing", mdns.TypeA), false)); got != "NOERROR 10.96.0.10" {
		t.Error(got)
	}
	close(release)
	for range dns.MaxForwards {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if st := s.Stats(); st.Refused != 1 || asked.Load() != dns.MaxForwards {
		t.Errorf("%+v, asked %d", st, asked.Load())
	}
}
