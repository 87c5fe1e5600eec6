// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"net/netip"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// withListeners publishes a mesh of nothing but listeners.
func withListeners(t testing.TB, set ...*resource.Listener) *catalog.Snapshot {
	t.Helper()
	c := catalog.New()
	c.SetClusters(nil, nil)
	c.SetListeners(set, nil)
	c.SetNames(&resource.NameTable{})
	return published(t, c)
}

func TestListenerByAddress(t *testing.T) {
	virtual := tcpListener("0.0.0.0:15001", catalog.PassthroughCluster)
	virtual.Virtual = true
	inbound := tcpListener("10.96.0.1:7000", "inbound")
	inbound.Outbound = false
	dual := tcpListener("0.0.0.0:443", "dual")
	dual.Addresses = append(dual.Addresses, netip.MustParseAddrPort("[::]:443"))
	s := withListeners(t, virtual, inbound, dual,
		tcpListener("10.96.0.1:80", "exact"),
		tcpListener("0.0.0.0:80", "port"),
		tcpListener("[::]:8080", "port6"),
		tcpListener("[fd00::1]:80", "exact6"),
	)
	for dst, want := range map[string]string{
		"10.96.0.1:80":          "10.96.0.1:80",
		"10.96.0.2:80":          "0.0.0.0:80",
		"[::ffff:10.96.0.1]:80": "10.96.0.1:80",
		"10.96.0.1:443":         "0.0.0.0:443",
		"[fd00::9]:443":         "0.0.0.0:443",
		"[fd00::1]:80":          "[fd00::1]:80",
		"[fd00::9]:8080":        "[::]:8080",
		"10.96.0.1:8080":        "0.0.0.0:15001",
		"10.96.0.1:7000":        "0.0.0.0:15001",
		"10.96.0.1:15001":       "0.0.0.0:15001",
		"[fd00::9]:80":          "0.0.0.0:15001", // the policy holds for both families
	} {
		if l := s.Listener(netip.MustParseAddrPort(dst)); l == nil || l.Config.Name != want {
			t.Errorf("%s: %v, want %s", dst, l, want)
		}
	}
}

func TestVirtualListenerPerFamily(t *testing.T) {
	virtual := func(addr string) *resource.Listener {
		l := tcpListener(addr, catalog.PassthroughCluster)
		l.Virtual = true
		return l
	}
	s := withListeners(t, virtual("0.0.0.0:15001"), virtual("[::]:15001"))
	for dst, want := range map[string]string{"1.2.3.4:5": "0.0.0.0:15001", "[2001:db8::1]:5": "[::]:15001"} {
		if l := s.Listener(netip.MustParseAddrPort(dst)); l == nil || l.Config.Name != want {
			t.Errorf("%s: %v, want %s", dst, l, want)
		}
	}
	if l := withListeners(t).Listener(netip.MustParseAddrPort("1.2.3.4:5")); l != nil {
		t.Errorf("a listener of a mesh without any: %s", l.Config.Name)
	}
}

// TestMatch holds the order in which Envoy judges the conditions of filter
// chains, and that it never goes back.
func TestMatch(t *testing.T) {
	type M = resource.ChainMatch
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	chain := func(name string, m M) *resource.FilterChain { return tcpChain(name, m) }
	tls := func(sni string, alpn ...string) *catalog.Sniff {
		return &catalog.Sniff{Transport: "tls", ServerName: sni, Protocols: alpn}
	}
	plain := func(alpn ...string) *catalog.Sniff {
		return &catalog.Sniff{Transport: "raw_buffer", Protocols: alpn}
	}
	tests := []struct {
		name   string
		chains []*resource.FilterChain
		dst    string
		sniff  *catalog.Sniff
		want   string // "": default
	}{
		{"one chain without conditions", []*resource.FilterChain{chain("a", M{})}, "1.2.3.4:80", tls("x", "h2"), "a"},
		{"no sniff", []*resource.FilterChain{chain("tls", M{TransportProtocol: "tls"}), chain("a", M{})}, "1.2.3.4:80", nil, "a"},

		{"port before prefix", []*resource.FilterChain{
			chain("prefix", M{Prefixes: prefixes("1.2.3.4/32")}), chain("port", M{DestinationPort: 80}),
		}, "1.2.3.4:80", nil, "port"},
		{"no way back from the port", []*resource.FilterChain{
			chain("any", M{}), chain("port", M{DestinationPort: 80, Prefixes: prefixes("9.0.0.0/8")}),
		}, "1.2.3.4:80", nil, ""},
		{"other port", []*resource.FilterChain{chain("any", M{}), chain("port", M{DestinationPort: 81})}, "1.2.3.4:80", nil, "any"},

		{"longest prefix", []*resource.FilterChain{
			chain("8", M{Prefixes: prefixes("10.0.0.0/8")}), chain("24", M{Prefixes: prefixes("10.1.2.0/24", "9.9.9.0/24")}),
			chain("16", M{Prefixes: prefixes("10.1.0.0/16")}), chain("any", M{}),
		}, "10.1.2.3:80", nil, "24"},
		{"shorter prefix", []*resource.FilterChain{
			chain("8", M{Prefixes: prefixes("10.0.0.0/8")}), chain("24", M{Prefixes: prefixes("10.1.2.0/24")}),
		}, "10.1.3.3:80", nil, "8"},
		{"host bits in a prefix", []*resource.FilterChain{chain("p", M{Prefixes: prefixes("10.1.2.3/16")})}, "10.1.9.9:80", nil, "p"},
		{"prefix 0", []*resource.FilterChain{chain("p", M{Prefixes: prefixes("0.0.0.0/0")})}, "10.1.9.9:80", nil, "p"},
		{"v6 prefix", []*resource.FilterChain{
			chain("4", M{Prefixes: prefixes("0.0.0.0/0")}), chain("6", M{Prefixes: prefixes("fd00::/8")}),
		}, "[fd00::1]:80", nil, "6"},
		{"mapped address", []*resource.FilterChain{chain("p", M{Prefixes: prefixes("10.0.0.0/8")})}, "[::ffff:10.0.0.1]:80", nil, "p"},
		{"no way back from the prefix", []*resource.FilterChain{
			chain("p", M{Prefixes: prefixes("10.0.0.0/8"), TransportProtocol: "tls"}), chain("any", M{}),
		}, "10.0.0.1:80", plain(), ""},

		{"exact server name", []*resource.FilterChain{
			chain("suffix", M{ServerNames: []string{"*.example.com"}}), chain("exact", M{ServerNames: []string{"a.example.com"}}),
		}, "1.2.3.4:443", tls("a.example.com"), "exact"},
		{"longest suffix", []*resource.FilterChain{
			chain("com", M{ServerNames: []string{"*.com"}}), chain("example", M{ServerNames: []string{"*.example.com"}}), chain("any", M{}),
		}, "1.2.3.4:443", tls("a.b.example.com"), "example"},
		{"shorter suffix", []*resource.FilterChain{
			chain("com", M{ServerNames: []string{"*.com"}}), chain("example", M{ServerNames: []string{"*.example.com"}}),
		}, "1.2.3.4:443", tls("example.com"), "com"},
		{"any server name", []*resource.FilterChain{
			chain("com", M{ServerNames: []string{"*.com"}}), chain("any", M{}),
		}, "1.2.3.4:443", tls("example.org"), "any"},
		{"server name in capitals", []*resource.FilterChain{
			chain("exact", M{ServerNames: []string{"a.example.com"}}),
		}, "1.2.3.4:443", tls("A.Example.COM"), "exact"},
		{"no server name", []*resource.FilterChain{
			chain("com", M{ServerNames: []string{"*.com"}}), chain("any", M{}),
		}, "1.2.3.4:443", tls(""), "any"},
		{"no way back from the server name", []*resource.FilterChain{
			chain("exact", M{ServerNames: []string{"a.com"}, ApplicationProtocols: []string{"h2"}}), chain("any", M{}),
		}, "1.2.3.4:443", tls("a.com", "http/1.1"), ""},

		{"transport", []*resource.FilterChain{
			chain("tls", M{TransportProtocol: "tls"}), chain("raw", M{TransportProtocol: "raw_buffer"}),
		}, "1.2.3.4:80", plain(), "raw"},
		{"transport before protocol", []*resource.FilterChain{
			chain("alpn", M{ApplicationProtocols: []string{"h2"}}), chain("tls", M{TransportProtocol: "tls"}),
		}, "1.2.3.4:80", tls("", "h2"), "tls"},
		{"first protocol that is listed", []*resource.FilterChain{
			chain("1", M{ApplicationProtocols: []string{"http/1.1"}}), chain("2", M{ApplicationProtocols: []string{"h2"}}),
		}, "1.2.3.4:80", tls("", "acme", "h2", "http/1.1"), "2"},
		{"protocol not listed", []*resource.FilterChain{
			chain("1", M{ApplicationProtocols: []string{"http/1.1"}}), chain("any", M{}),
		}, "1.2.3.4:80", tls("", "acme"), "any"},

		{"istio's port 80", []*resource.FilterChain{
			chain("http", M{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1", "h2c"}}),
		}, "1.2.3.4:80", plain("http/1.1"), "http"},
		{"istio's port 80, not HTTP", []*resource.FilterChain{
			chain("http", M{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1", "h2c"}}),
		}, "1.2.3.4:80", plain(), ""},
		{"istio's port 80, TLS", []*resource.FilterChain{
			chain("http", M{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1", "h2c"}}),
		}, "1.2.3.4:80", tls("a.com", "http/1.1"), ""},

		{"conditions that cannot be judged never hold", []*resource.FilterChain{
			chain("source", M{DestinationPort: 80, Unsupported: []string{"source_prefix_ranges"}}), chain("any", M{}),
		}, "1.2.3.4:80", nil, "any"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			def := tcpChain("default", resource.ChainMatch{})
			s := withListeners(t, &resource.Listener{
				Name: "l", Outbound: true, Chains: tt.chains, Default: def,
				Addresses: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:80")},
			})
			l := s.Listener(netip.MustParseAddrPort("1.1.1.1:80"))
			got := l.Match(netip.MustParseAddrPort(tt.dst), tt.sniff)
			want := tt.want
			if want == "" {
				want = "default"
			}
			if got == nil || got.Name != want {
				t.Errorf("matched %v, want %s", got, want)
			}
		})
	}
}

func TestMatchWithoutDefault(t *testing.T) {
	l := tcpListener("10.0.0.1:80", "a")
	l.Chains[0].Match.TransportProtocol = "tls"
	s := withListeners(t, l)
	dst := l.Addresses[0]
	if c := s.Listener(dst).Match(dst, &catalog.Sniff{}); c != nil {
		t.Errorf("matched %s, want nothing", c.Name)
	}
}

func TestInspect(t *testing.T) {
	type M = resource.ChainMatch
	tests := []struct {
		name      string
		tls, http bool // inspectors
		match     []M
		wantTLS   bool
		wantHTTP  bool
	}{
		{"no condition", true, true, []M{{}}, false, false},
		{"conditions on the address only", true, true, []M{{DestinationPort: 80}, {}}, false, false},
		{"istio's port 80", false, true, []M{{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1", "h2c"}}}, false, true},
		{"auto-detected port", true, true, []M{
			{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1", "h2c"}}, {},
		}, true, true},
		{"server names", true, false, []M{{ServerNames: []string{"a.com"}}}, true, false},
		{"no inspector", false, false, []M{{ServerNames: []string{"a.com"}}}, false, false},
		{"protocols of TLS only", true, true, []M{{TransportProtocol: "tls", ApplicationProtocols: []string{"h2"}}}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &resource.Listener{
				Name: "l", Outbound: true, TLSInspector: tt.tls, HTTPInspector: tt.http,
				Addresses: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:80")},
			}
			for _, m := range tt.match {
				l.Chains = append(l.Chains, tcpChain("c", m))
			}
			gotTLS, gotHTTP := withListeners(t, l).Listener(netip.MustParseAddrPort("1.1.1.1:80")).Inspect()
			if gotTLS != tt.wantTLS || gotHTTP != tt.wantHTTP {
				t.Errorf("Inspect = %v, %v, want %v, %v", gotTLS, gotHTTP, tt.wantTLS, tt.wantHTTP)
			}
		})
	}
}
