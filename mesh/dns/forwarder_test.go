// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/nasp-tun/nasp-tun/mesh/dns"
)

// resolvers is a network of fake resolvers in memory. Each answers a question
// with messages, with nothing, or refuses the connection.
type resolvers struct {
	t      *testing.T
	answer map[string]func(q *mdns.Msg, network string) []*mdns.Msg

	mu    sync.Mutex
	asked []string // "network address"
	open  sync.WaitGroup
}

var errRefused = errors.New("connection refused")

func (r *resolvers) dial(_ context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	r.mu.Lock()
	r.asked = append(r.asked, network+" "+host)
	r.mu.Unlock()
	f := r.answer[host]
	if f == nil {
		return nil, errRefused
	}
	client, server := net.Pipe()
	r.open.Go(func() { r.serve(server, network, f) })
	return client, nil
}

func (r *resolvers) serve(c net.Conn, network string, f func(*mdns.Msg, string) []*mdns.Msg) {
	defer c.Close()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		b := buf[:n]
		if network == "tcp" {
			b = b[2:]
		}
		q := new(mdns.Msg)
		if err := q.Unpack(b); err != nil {
			r.t.Error(err)
			return
		}
		for _, a := range f(q, network) {
			out, err := a.Pack()
			if err != nil {
				r.t.Error(err)
				return
			}
			if network == "tcp" {
				out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
			}
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}
}

func reply(q *mdns.Msg, rcode int, text string) *mdns.Msg {
	a := new(mdns.Msg).SetRcode(q, rcode)
	if text != "" {
		a.Answer = []mdns.RR{&mdns.TXT{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET}, Txt: []string{text}}}
	}
	return a
}

func says(rcode int, text string) func(*mdns.Msg, string) []*mdns.Msg {
	return func(q *mdns.Msg, _ string) []*mdns.Msg { return []*mdns.Msg{reply(q, rcode, text)} }
}

func silent(*mdns.Msg, string) []*mdns.Msg { return nil }

func TestForwarder(t *testing.T) {
	type answers = map[string]func(*mdns.Msg, string) []*mdns.Msg
	for _, tt := range []struct {
		name    string
		answer  answers
		servers string
		tcp     bool
		want    string // text of the answer, or the error
		asked   string
		took    time.Duration
	}{
		{"one server", answers{"10.0.0.1": says(0, "a")}, "10.0.0.1", false, `NOERROR "a"`, "udp 10.0.0.1", 0},
		{"a client by TCP", answers{"10.0.0.1": says(0, "a")}, "10.0.0.1", true, `NOERROR "a"`, "tcp 10.0.0.1", 0},
		{"NXDOMAIN is an answer", answers{"10.0.0.1": says(3, ""), "10.0.0.2": says(0, "b")}, "10.0.0.1 10.0.0.2", false, "NXDOMAIN", "udp 10.0.0.1", 0},
		{"none", nil, "", false, "the host has no resolvers", "", 0},
		{
			"the first refuses the connection",
			answers{"10.0.0.2": says(0, "b")},
			"10.0.0.1 10.0.0.2", false,
			`NOERROR "b"`, "udp 10.0.0.1, udp 10.0.0.2", 0,
		},
		{
			"the first is silent",
			answers{"10.0.0.1": silent, "10.0.0.2": says(0, "b")},
			"10.0.0.1 10.0.0.2", false,
			`NOERROR "b"`, "udp 10.0.0.1, udp 10.0.0.2", 1250 * time.Millisecond,
		},
		{
			"all are silent",
			answers{"10.0.0.1": silent},
			"10.0.0.1", false,
			"ask 10.0.0.1:53: context deadline exceeded", "udp 10.0.0.1, udp 10.0.0.1", 5 * time.Second,
		},
		{
			"many are silent",
			answers{"10.0.0.1": silent, "10.0.0.2": silent, "10.0.0.3": silent, "10.0.0.4": silent},
			"10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", false,
			"ask 10.0.0.1:53: context deadline exceeded", "udp 10.0.0.1, udp 10.0.0.2, udp 10.0.0.3, udp 10.0.0.4, udp 10.0.0.1", 5 * time.Second,
		},
		{
			"SERVFAIL makes the next one be asked",
			answers{"10.0.0.1": says(2, ""), "10.0.0.2": says(0, "b")},
			"10.0.0.1 10.0.0.2", false,
			`NOERROR "b"`, "udp 10.0.0.1, udp 10.0.0.2", 0,
		},
		{
			"SERVFAIL of all is passed on",
			answers{"10.0.0.1": says(2, ""), "10.0.0.2": says(5, "")},
			"10.0.0.1 10.0.0.2", false,
			"REFUSED", "udp 10.0.0.1, udp 10.0.0.2", 0,
		},
		{
			"a cut answer is fetched by TCP", answers{"10.0.0.1": func(q *mdns.Msg, network string) []*mdns.Msg {
				a := reply(q, 0, network)
				a.Truncated = network == "udp"
				return []*mdns.Msg{a}
			}}, "10.0.0.1", false, `NOERROR "tcp"`, "udp 10.0.0.1, tcp 10.0.0.1", 0,
		},
		{
			"forged answers are passed over", answers{"10.0.0.1": func(q *mdns.Msg, _ string) []*mdns.Msg {
				wrongID := reply(q, 0, "id")
				wrongID.Id++
				wrongName := reply(q, 0, "name")
				wrongName.Question[0].Name = "other.example."
				wrongType := reply(q, 0, "type")
				wrongType.Question[0].Qtype = mdns.TypeA
				echoed := q.Copy()
				empty := reply(q, 0, "")
				empty.Question = nil
				right := reply(q, 0, "right")
				right.Question[0].Name = strings.ToUpper(q.Question[0].Name)
				return []*mdns.Msg{wrongID, wrongName, wrongType, echoed, empty, right}
			}}, "10.0.0.1", false, `NOERROR "right"`, "udp 10.0.0.1", 0,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &resolvers{t: t, answer: tt.answer}
				var servers []netip.AddrPort
				for _, a := range strings.Fields(tt.servers) {
					servers = append(servers, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
				}
				f := dns.NewForwarder(func() []netip.AddrPort { return servers }, r.dial)
				q := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeTXT)
				start := time.Now()
				a, err := f.Forward(t.Context(), q, tt.tcp)
				took := time.Since(start)
				got := brief(a)
				if err != nil {
					got = err.Error()
				} else if a.Id != q.Id {
					t.Errorf("ID %d, want that of the question, %d", a.Id, q.Id)
				}
				if got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				r.open.Wait()
				if asked := strings.Join(r.asked, ", "); asked != tt.asked {
					t.Errorf("asked %s, want %s", asked, tt.asked)
				}
				if took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
			})
		})
	}
}

func TestForwarderStaysWithTheServerThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &resolvers{t: t, answer: map[string]func(*mdns.Msg, string) []*mdns.Msg{"10.0.0.1": silent, "10.0.0.2": says(0, "b")}}
		servers := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("10.0.0.2:53")}
		f := dns.NewForwarder(func() []netip.AddrPort { return servers }, r.dial)
		q := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeTXT)
		for range 3 {
			if _, err := f.Forward(t.Context(), q, false); err != nil {
				t.Fatal(err)
			}
		}
		r.open.Wait()
		if got, want := strings.Join(r.asked, ", "), "udp 10.0.0.1, udp 10.0.0.2, udp 10.0.0.2, udp 10.0.0.2"; got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
		// Fewer servers than before: the index is still good.
		servers = servers[:1]
		r.answer["10.0.0.1"] = says(0, "a")
		if a, err := f.Forward(t.Context(), q, false); err != nil || brief(a) != `NOERROR "a"` {
			t.Error(brief(a), err)
		}
		r.open.Wait()
	})
}

func TestForwarderUsesAnIDOfItsOwn(t *testing.T) {
	seen := map[uint16]bool{}
	r := &resolvers{t: t, answer: map[string]func(*mdns.Msg, string) []*mdns.Msg{"10.0.0.1": func(q *mdns.Msg, _ string) []*mdns.Msg {
		seen[q.Id] = true
		return []*mdns.Msg{reply(q, 0, "")}
	}}}
	f := dns.NewForwarder(func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")} }, r.dial)
	q := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeTXT)
	for range 20 {
		if a, err := f.Forward(t.Context(), q, false); err != nil || a.Id != q.Id {
			t.Fatal(a, err)
		}
	}
	r.open.Wait()
	if len(seen) < 10 {
		t.Errorf("%d different IDs in 20 questions", len(seen))
	}
}
