// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// table compiles a route configuration.
func table(t testing.TB, cfg *resource.RouteConfiguration) *catalog.RouteTable {
	t.Helper()
	return withListeners(t).Routes(&resource.HTTPManager{Routes: cfg})
}

// TestHosts holds Envoy's order of search among the domains of virtual hosts.
func TestHosts(t *testing.T) {
	rt := table(t, &resource.RouteConfiguration{IgnorePort: true, VirtualHosts: []*resource.VirtualHost{
		host("any", "*"),
		host("exact", "www.example.com", "www.example.com.", "10.96.0.1", "[fd00::1]"),
		host("suffix", "*.example.com", "*-x.example.com"),
		host("longer", "*.b.example.com"),
		host("prefix", "www.*"),
		host("longer-prefix", "www.example.*"),
		host("second", "www.example.com", "*.example.com", "only.second.com"),
	}})
	for h, want := range map[string]string{
		"www.example.com":      "exact",
		"WWW.Example.com":      "exact",
		"www.example.com.":     "exact",
		"www.example.com:8080": "exact",
		"10.96.0.1":            "exact",
		"10.96.0.1:80":         "exact",
		"[fd00::1]":            "exact",
		"[fd00::1]:80":         "exact",
		"a.example.com":        "suffix",
		"a-x.example.com":      "suffix",
		"a.b.example.com":      "longer",
		".example.com":         "any", // the star is at least one character
		"www.example.org":      "longer-prefix",
		"www.other.org":        "prefix",
		"www.":                 "any",
		"only.second.com":      "second",
		"":                     "any",
		"other":                "any",
		"www.example.com:port": "longer-prefix", // not a port
	} {
		vh, r := rt.Match(&catalog.Request{Host: h, Path: "/"})
		if vh == nil || r == nil || vh.Name != want {
			t.Errorf("%q: %v, want %s", h, vh, want)
		}
	}
}

func TestHostsKeepPort(t *testing.T) {
	rt := table(t, &resource.RouteConfiguration{VirtualHosts: []*resource.VirtualHost{
		host("with", "a.com:80"), host("without", "a.com"),
	}})
	for h, want := range map[string]string{"a.com:80": "with", "a.com": "without"} {
		if vh, _ := rt.Match(&catalog.Request{Host: h, Path: "/"}); vh == nil || vh.Name != want {
			t.Errorf("%q: %v, want %s", h, vh, want)
		}
	}
	if vh, r := rt.Match(&catalog.Request{Host: "a.com:81", Path: "/"}); vh != nil || r != nil {
		t.Errorf("a.com:81: %v, want no host", vh.Name)
	}
}

// TestVIPFallback: a Host that no virtual host knows goes by the address that
// was dialled, but only where the mesh has no better idea than "outside".
func TestVIPFallback(t *testing.T) {
	allowAny, blockAll := host(catalog.PassthroughCluster, "*"), host("", "*")
	blockAll.Name = "block_all"
	blockAll.Routes[0].Action = nil
	blockAll.Routes[0].Direct = &resource.DirectResponse{Status: 502}
	echo := host("echo", "echo.testing", "10.96.0.1", "10.96.0.2:8080", "[fd00::1]")
	own := host("own", "*")
	tests := []struct {
		name string
		any  *resource.VirtualHost
		host string
		dst  string
		want string
	}{
		{"unknown host, allow_any", allowAny, "foo.com", "10.96.0.1:80", "echo"},
		{"unknown host, block_all", blockAll, "foo.com", "10.96.0.1:80", "echo"},
		{"unknown host, no other", nil, "foo.com", "10.96.0.1:80", "echo"},
		{"v6", allowAny, "foo.com", "[fd00::1]:80", "echo"},
		{"mapped", allowAny, "foo.com", "[::ffff:10.96.0.1]:80", "echo"},
		{"address with port", allowAny, "foo.com", "10.96.0.2:8080", "echo"},
		{"address with another port", allowAny, "foo.com", "10.96.0.2:80", catalog.PassthroughCluster},
		{"unknown address", allowAny, "foo.com", "1.2.3.4:80", catalog.PassthroughCluster},
		{"known host", allowAny, "echo.testing", "1.2.3.4:80", "echo"},
		{"a service of its own for all hosts", own, "foo.com", "10.96.0.1:80", "own"},
		{"no address", allowAny, "foo.com", "", catalog.PassthroughCluster},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := &resource.RouteConfiguration{VirtualHosts: []*resource.VirtualHost{echo}}
			if tt.any != nil {
				cfg.VirtualHosts = append(cfg.VirtualHosts, tt.any)
			}
			r := &catalog.Request{Host: tt.host, Path: "/"}
			if tt.dst != "" {
				r.Dst = netip.MustParseAddrPort(tt.dst)
			}
			if vh, _ := table(t, cfg).Match(r); vh == nil || vh.Name != tt.want {
				t.Errorf("%v, want %s", vh, tt.want)
			}
		})
	}
}

// TestRouteConditions judges one route at a time.
func TestRouteConditions(t *testing.T) {
	type (
		M = resource.RouteMatch
		H = resource.HeaderMatch
	)
	headers := func(list ...H) M { return M{Prefix: "/", CaseSensitive: true, Headers: list} }
	query := func(list ...H) M { return M{Prefix: "/", CaseSensitive: true, Query: list} }
	re := func(s string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + s + `)\z`) }
	get := func(path string, kv ...string) *catalog.Request {
		h := make(http.Header)
		for i := 0; i < len(kv); i += 2 {
			h.Add(kv[i], kv[i+1])
		}
		return &catalog.Request{Method: "GET", Host: "a.com", Path: path, Scheme: "http", Header: h.Values}
	}
	tests := []struct {
		name  string
		match M
		req   *catalog.Request
		want  bool
	}{
		{"prefix", M{Prefix: "/api", CaseSensitive: true}, get("/api/v1"), true},
		{"prefix of a segment", M{Prefix: "/api", CaseSensitive: true}, get("/apix"), true},
		{"prefix, not at the start", M{Prefix: "/api", CaseSensitive: true}, get("/x/api"), false},
		{"prefix, other case", M{Prefix: "/api", CaseSensitive: true}, get("/API"), false},
		{"prefix, any case", M{Prefix: "/api"}, get("/API/v1"), true},
		{"prefix does not look into the query", M{Prefix: "/a?b", CaseSensitive: true}, get("/a?b"), false},

		{"whole segments", M{PathPrefix: "/api", CaseSensitive: true}, get("/api/v1"), true},
		{"whole segments, exactly", M{PathPrefix: "/api", CaseSensitive: true}, get("/api?x=/"), true},
		{"whole segments, part of one", M{PathPrefix: "/api", CaseSensitive: true}, get("/apix"), false},
		{"whole segments, any case", M{PathPrefix: "/api"}, get("/Api/v1"), true},

		{"path", M{Path: "/a", CaseSensitive: true}, get("/a"), true},
		{"path with query", M{Path: "/a", CaseSensitive: true}, get("/a?b=c"), true},
		{"path with fragment", M{Path: "/a", CaseSensitive: true}, get("/a#b?c"), true},
		{"longer path", M{Path: "/a", CaseSensitive: true}, get("/a/"), false},
		{"path, any case", M{Path: "/a"}, get("/A"), true},

		{"regex", M{Regex: re("/a/[0-9]+")}, get("/a/12?x"), true},
		{"regex is anchored", M{Regex: re("/a/[0-9]+")}, get("/a/12/b"), false},

		{"header present", headers(H{Name: "x-a", Present: true}), get("/", "x-a", ""), true},
		{"header missing", headers(H{Name: "x-a", Present: true}), get("/"), false},
		{"header absent", headers(H{Name: "x-a", Present: true, Invert: true}), get("/"), true},
		{"header not absent", headers(H{Name: "x-a", Present: true, Invert: true}), get("/", "x-a", "1"), false},
		{"exact", headers(H{Name: "x-a", HasExact: true, Exact: "b"}), get("/", "X-A", "b"), true},
		{"not exact", headers(H{Name: "x-a", HasExact: true, Exact: "b"}), get("/", "x-a", "bb"), false},
		{"exact, any case", headers(H{Name: "x-a", HasExact: true, Exact: "b", FoldCase: true}), get("/", "x-a", "B"), true},
		{"exactly empty", headers(H{Name: "x-a", HasExact: true}), get("/", "x-a", ""), true},
		{"exactly empty is not missing", headers(H{Name: "x-a", HasExact: true}), get("/"), false},
		{"value prefix", headers(H{Name: "x-a", Prefix: "b"}), get("/", "x-a", "bc"), true},
		{"value suffix", headers(H{Name: "x-a", Suffix: "c"}), get("/", "x-a", "bc"), true},
		{"longer suffix than value", headers(H{Name: "x-a", Suffix: "abc"}), get("/", "x-a", "bc"), false},
		{"value contains", headers(H{Name: "x-a", Contains: "c"}), get("/", "x-a", "bcd"), true},
		{"value contains, any case", headers(H{Name: "x-a", Contains: "cD", FoldCase: true}), get("/", "x-a", "bCd"), true},
		{"value regex", headers(H{Name: "x-a", Regex: re("b+")}), get("/", "x-a", "bbb"), true},
		{"value regex is anchored", headers(H{Name: "x-a", Regex: re("b+")}), get("/", "x-a", "abbb"), false},
		{"range, low end", headers(H{Name: "x-a", HasRange: true, RangeLo: 1, RangeHi: 3}), get("/", "x-a", "1"), true},
		{"range, high end", headers(H{Name: "x-a", HasRange: true, RangeLo: 1, RangeHi: 3}), get("/", "x-a", "3"), false},
		{"range, no number", headers(H{Name: "x-a", HasRange: true, RangeLo: 1, RangeHi: 3}), get("/", "x-a", "x"), false},
		{"inverted", headers(H{Name: "x-a", HasExact: true, Exact: "b", Invert: true}), get("/", "x-a", "c"), true},
		// Envoy: a missing header matches no condition on its value, and
		// its inverse no more.
		{"inverted, missing", headers(H{Name: "x-a", HasExact: true, Exact: "b", Invert: true}), get("/"), false},
		{"inverted, missing is empty", headers(H{Name: "x-a", HasExact: true, Exact: "b", Invert: true, AbsentAsEmpty: true}), get("/"), true},
		{"several lines are one list", headers(H{Name: "x-a", HasExact: true, Exact: "b,c"}), get("/", "x-a", "b", "x-a", "c"), true},
		{"all headers", headers(H{Name: "x-a", Present: true}, H{Name: "x-b", Present: true}), get("/", "x-a", "1"), false},
		{"method", headers(H{Name: ":method", HasExact: true, Exact: "GET"}), get("/"), true},
		{"other method", headers(H{Name: ":method", HasExact: true, Exact: "POST"}), get("/"), false},
		{"authority", headers(H{Name: ":authority", Prefix: "a."}), get("/"), true},
		{"scheme", headers(H{Name: ":scheme", HasExact: true, Exact: "https"}), get("/"), false},
		{"whole path", headers(H{Name: ":path", Suffix: "?x"}), get("/a?x"), true},
		{"no headers at all", headers(H{Name: "x-a", Present: true}), &catalog.Request{Path: "/"}, false},

		{"query", query(H{Name: "a", HasExact: true, Exact: "1"}), get("/?b=2&a=1"), true},
		{"query, first value", query(H{Name: "a", HasExact: true, Exact: "1"}), get("/?a=2&a=1"), false},
		{"query, present", query(H{Name: "a", Present: true}), get("/?a"), true},
		{"query, missing", query(H{Name: "a", Present: true}), get("/?aa"), false},
		{"query is not decoded", query(H{Name: "a", HasExact: true, Exact: "%20"}), get("/?a=%20"), true},
		{"no query", query(H{Name: "a", HasExact: true, Exact: "1"}), get("/"), false},

		{"grpc", M{Prefix: "/", GRPC: true}, get("/"), false},
		{"grpc call", M{Prefix: "/", GRPC: true}, &catalog.Request{Path: "/", GRPC: true}, true},
		{"no fraction", M{Prefix: "/", HasFraction: true}, get("/"), false},
		{"the whole", M{Prefix: "/", HasFraction: true, Fraction: 1e6}, get("/"), true},
		{"what cannot be judged never holds", M{Prefix: "/", Unsupported: []string{"tls_context"}}, get("/"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			vh := host("a", "*")
			vh.Routes[0].Match = tt.match
			got, r := table(t, &resource.RouteConfiguration{VirtualHosts: []*resource.VirtualHost{vh}}).Match(tt.req)
			if got != vh {
				t.Fatalf("host %v", got)
			}
			if (r != nil) != tt.want {
				t.Errorf("matched = %v, want %v", r != nil, tt.want)
			}
		})
	}
}

// TestFirstRouteWins: the usual shape of a VirtualService, routes for a header
// or a path first and a default last, sends each request one way (nasp found
// several and then spoke clear text).
func TestFirstRouteWins(t *testing.T) {
	route := func(cluster string, m resource.RouteMatch) *resource.Route {
		m.CaseSensitive = true
		return &resource.Route{Name: cluster, Match: m, Action: &resource.RouteAction{Clusters: []resource.WeightedCluster{{Name: cluster, Weight: 1}}}}
	}
	vh := &resource.VirtualHost{Name: "v", Domains: []string{"reviews"}, Routes: []*resource.Route{
		route("jason", resource.RouteMatch{Prefix: "/", Headers: []resource.HeaderMatch{{Name: "end-user", HasExact: true, Exact: "jason"}}}),
		route("api", resource.RouteMatch{Prefix: "/api"}),
		route("default", resource.RouteMatch{Prefix: "/"}),
	}}
	rt := table(t, &resource.RouteConfiguration{VirtualHosts: []*resource.VirtualHost{vh}})
	for _, tt := range []struct{ path, user, want string }{
		{"/", "", "default"}, {"/", "jason", "jason"}, {"/api", "jason", "jason"}, {"/api/x", "bob", "api"},
	} {
		r := &catalog.Request{Host: "reviews", Path: tt.path, Header: func(name string) []string {
			if name == "End-User" && tt.user != "" {
				return []string{tt.user}
			}
			return nil
		}}
		if _, got := rt.Match(r); got == nil || got.Name != tt.want {
			t.Errorf("%s of %q: %v, want %s", tt.path, tt.user, got, tt.want)
		}
	}
	vh.Routes = vh.Routes[:2]
	if got, r := rt.Match(&catalog.Request{Host: "reviews", Path: "/"}); got != vh || r != nil {
		t.Errorf("no route: %v, %v; want the host alone", got, r)
	}
}

func TestFractionAndWeightsAreIndependent(t *testing.T) {
	vh := host("half", "*")
	vh.Routes[0].Match.HasFraction, vh.Routes[0].Match.Fraction = true, 500_000
	vh.Routes = append(vh.Routes, host("rest", "*").Routes[0])
	rt := table(t, &resource.RouteConfiguration{VirtualHosts: []*resource.VirtualHost{vh}})
	clusters := []resource.WeightedCluster{{Name: "a", Weight: 1}, {Name: "b", Weight: 0}, {Name: "c", Weight: 3}}
	random := rand.New(rand.NewPCG(1, 1))
	count := make(map[string]int)
	const n = 40_000
	for range n {
		x := random.Uint64()
		_, r := rt.Match(&catalog.Request{Path: "/", Rand: x})
		count[r.Action.Clusters[0].Name+catalog.Choose(clusters, x).Name]++
	}
	for what, share := range map[string]float64{"halfa": .125, "halfc": .375, "resta": .125, "restc": .375} {
		if got := float64(count[what]) / n; got < share-.01 || got > share+.01 {
			t.Errorf("%s: %.3f of the requests, want %.3f", what, got, share)
		}
		delete(count, what)
	}
	if len(count) > 0 {
		t.Errorf("clusters without a weight are chosen: %v", count)
	}
}

func TestChooseFew(t *testing.T) {
	if c := catalog.Choose(nil, 1); c != nil {
		t.Errorf("chose %v of none", c)
	}
	if c := catalog.Choose([]resource.WeightedCluster{{Name: "a"}}, 7); c == nil || c.Name != "a" {
		t.Errorf("chose %v of one", c)
	}
}
