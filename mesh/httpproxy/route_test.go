// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func set(name, value string, a resource.HeaderAction) resource.HeaderMutations {
	return resource.HeaderMutations{Set: []resource.HeaderValue{{Name: name, Value: value, Action: a}}}
}

func TestRouteRewrites(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*resource.Route, *resource.HTTPManager, *resource.VirtualHost)
		request string // the first line's target
		want    string // must be in the head that the endpoint gets
		answer  string // must be in the response's head
	}{
		{"prefix", func(r *resource.Route, _ *resource.HTTPManager, _ *resource.VirtualHost) {
			r.Match.Prefix, r.Action.HasPrefixRewrite, r.Action.PrefixRewrite = "/old", true, "/new"
		}, "/old/x?q=/old", "GET /new/x?q=/old HTTP/1.1\r\n", ""},
		{"exact path", func(r *resource.Route, _ *resource.HTTPManager, _ *resource.VirtualHost) {
			r.Match.Prefix, r.Match.Path, r.Action.HasPrefixRewrite, r.Action.PrefixRewrite = "", "/old", true, "/new"
		}, "/old?q", "GET /new?q HTTP/1.1\r\n", ""},
		{"regex", func(r *resource.Route, _ *resource.HTTPManager, _ *resource.VirtualHost) {
			r.Action.RegexRewrite, r.Action.RegexSubstitution = regexp.MustCompile(`^/v(\d)/`), "/api/${1}/"
		}, "/v2/x?y", "GET /api/2/x?y HTTP/1.1\r\n", ""},
		{"host", func(r *resource.Route, _ *resource.HTTPManager, _ *resource.VirtualHost) {
			r.Action.HostRewrite = "other.testing"
		}, "/", "Host: other.testing\r\n", ""},
		{"headers", func(r *resource.Route, _ *resource.HTTPManager, vh *resource.VirtualHost) {
			w := &r.Action.Clusters[0]
			w.RequestHeaders = set("x-a", "cluster", resource.AppendOrAdd)
			r.RequestHeaders = set("x-a", "route", resource.AppendOrAdd)
			vh.RequestHeaders = set("x-b", "host", resource.AddIfAbsent)
			r.ResponseHeaders = set("x-answer", "route", resource.OverwriteOrAdd)
			vh.ResponseHeaders = resource.HeaderMutations{Remove: []string{"server"}}
		}, "/", "X-A: cluster\r\nX-A: route\r\nX-B: host\r\n", "X-Answer: route\r\n"},
		{"host by header", func(r *resource.Route, _ *resource.HTTPManager, _ *resource.VirtualHost) {
			r.RequestHeaders = set("Host", "third.testing", resource.OverwriteOrAdd)
		}, "/", "Host: third.testing\r\n", ""},
		{"normalised", func(r *resource.Route, m *resource.HTTPManager, _ *resource.VirtualHost) {
			m.NormalizePath, m.MergeSlashes = true, true
			r.Match.Prefix = "/b"
		}, "/a/%2E%2e//b/./c?d=/../", "GET /b/c?d=/../ HTTP/1.1\r\n", ""},
		{"number of the try", func(_ *resource.Route, m *resource.HTTPManager, vh *resource.VirtualHost) {
			vh.CountAttempts, m.GenerateReqID = true, false
		}, "/", "X-Envoy-Attempt-Count: 1\r\n", ""},
		{"forwarded for", func(_ *resource.Route, m *resource.HTTPManager, _ *resource.VirtualHost) {
			m.AppendXFF, m.GenerateReqID = true, false
		}, "/", "X-Forwarded-For: 192.0.2.77\r\nX-Forwarded-Proto: http\r\n\r\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			tt.change(e.route, e.manager, e.routes.VirtualHosts[0])
			e.answer(hostA, func(head string, s *server) string {
				return strings.Replace(mirror(head, s), "\r\n", "\r\nServer: x\r\n", 1)
			})
			e.start()
			c := e.client()
			c.send("GET " + tt.request + " HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
			r, body := c.response("GET")
			if r.StatusCode != 200 || !strings.Contains(body, tt.want) {
				t.Errorf("%d, endpoint got\n%s\nwant %q", r.StatusCode, body, tt.want)
			}
			var head strings.Builder
			_ = r.Header.Write(&head)
			if !strings.Contains(head.String(), tt.answer) || tt.answer != "" && strings.Contains(head.String(), "Server") {
				t.Errorf("client got %s, want %q", head.String(), tt.answer)
			}
		})
	}
}

// A sidecar appends its view of the certificate to what comes with a request:
// a program that could send the field would choose who it seems to be.
func TestClientCertificateCannotBeForged(t *testing.T) {
	const forged = "By=spiffe://cluster.local/ns/a/sa/b;Hash=00;URI=spiffe://cluster.local/ns/a/sa/admin"
	for _, forward := range []bool{false, true} {
		e := newEnv(t)
		e.manager.ForwardClientCert = forward
		e.answer(hostA, mirror)
		e.start()
		c := e.client()
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\nX-Forwarded-Client-Cert: " + forged + "\r\n\r\n")
		if _, body := c.response("GET"); strings.Contains(body, forged) != forward {
			t.Errorf("forward %v: the endpoint got\n%s", forward, body)
		}
	}
}

func TestRouteAnswers(t *testing.T) {
	direct := func(r *resource.Route, d resource.DirectResponse) { r.Action, r.Direct = nil, &d }
	redirect := func(r *resource.Route, d resource.Redirect) { r.Action, r.Redirect = nil, &d }
	for _, tt := range []struct {
		name     string
		change   func(*env)
		request  string
		status   int
		header   string // name: value
		body     string
		reason   string
		flags    string
		wantBody bool
	}{
		{name: "direct", change: func(e *env) { direct(e.route, resource.DirectResponse{Status: 418, Body: []byte("tea")}) }, status: 418, body: "tea"},
		{name: "redirect", change: func(e *env) { redirect(e.route, resource.Redirect{HTTPS: true}) }, status: 301, header: "Location: https://echo.testing/x?y"},
		{name: "redirect elsewhere", change: func(e *env) {
			redirect(e.route, resource.Redirect{Status: 307, Host: "b.example", Port: 8443, Path: "/z", StripQuery: true, Scheme: "https"})
		}, status: 307, header: "Location: https://b.example:8443/z"},
		{name: "redirect prefix", change: func(e *env) {
			e.route.Match.Prefix = "/x"
			redirect(e.route, resource.Redirect{Status: 308, HasPrefix: true, PrefixRewrite: "/y"})
		}, status: 308, header: "Location: http://echo.testing/y?y"},
		{name: "no route", change: func(e *env) { e.route.Match.Prefix = "/other" }, status: 404, body: "echo.testing/x?y", reason: "no_route", flags: "NR"},
		{name: "no cluster", change: func(e *env) { e.route.Action.Clusters[0].Name = "gone" }, status: 503, body: "gone", reason: "no_cluster", flags: "NC"},
		{name: "no cluster, 404", change: func(e *env) { e.route.Action.Clusters[0].Name, e.route.Action.NotFound = "gone", 404 }, status: 404, reason: "no_cluster", flags: "NC"},
		{name: "no endpoint", change: func(e *env) { e.endpoints() }, status: 503, body: echoName, reason: "no_endpoint", flags: "UH"},
		{name: "HBONE", change: func(e *env) { e.cluster.Transport.Kind = resource.HBONE }, status: 503, body: "HBONE", reason: "transport_unsupported", flags: "UF"},
		{name: "wrong identity", change: func(e *env) { e.cluster.Transport.SANs[0].Exact = "spiffe://x/y" }, status: 503, body: echoID, reason: "tls_identity", flags: "UF"},
		{name: "refused", change: func(e *env) { e.endpoints("10.0.0.9:1") }, status: 503, body: "10.0.0.9:1", reason: "connect", flags: "UF"},
		{name: "refused, tried again", change: func(e *env) {
			e.endpoints("10.0.0.9:1")
			e.route.Action.Retry = istiodRetry()
		}, status: 503, reason: "connect", flags: "UF,URX"},
		{name: "block_all", change: func(e *env) {
			e.routes.VirtualHosts[0].Name, e.routes.VirtualHosts[0].Domains = "block_all", []string{"*"}
			direct(e.route, resource.DirectResponse{Status: 502})
		}, status: 502, body: "REGISTRY_ONLY", reason: "blackhole", flags: "UH"},
		{name: "BlackHoleCluster", change: func(e *env) {
			e.route.Action.Clusters[0].Name = "BlackHoleCluster"
			e.more = append(e.more, &resource.Cluster{Name: "BlackHoleCluster"})
		}, status: 502, body: "REGISTRY_ONLY", reason: "blackhole", flags: "UH"},
		{name: "passthrough of what is the mesh's", change: func(e *env) {
			passthrough(e)
			e.routes.VirtualHosts[0].Domains = []string{"x.testing"} // the VIP's own host is gone
			e.routes.VirtualHosts = append(e.routes.VirtualHosts, &resource.VirtualHost{
				Name: "allow_any", Domains: []string{"*"}, Routes: []*resource.Route{e.route},
			})
		}, status: 502, body: "not known at 10.96.0.10:80", reason: "unrouted", flags: "NR"},
		{name: "the Host of a headless service at another's address", change: func(e *env) {
			// Plain TCP by its own configuration, as istiod's for headless services.
			e.more = append(e.more, &resource.Cluster{Name: "outbound|80||headless.testing", Discovery: resource.OriginalDst})
			mine := *e.route
			mine.Action = &resource.RouteAction{Clusters: []resource.WeightedCluster{{Name: echoName, Weight: 1}}}
			e.routes.VirtualHosts[0].Domains, e.routes.VirtualHosts[0].Routes = []string{"10.96.0.10"}, []*resource.Route{&mine}
			e.route.Action.Clusters[0].Name = "outbound|80||headless.testing"
			e.routes.VirtualHosts = append(e.routes.VirtualHosts, &resource.VirtualHost{
				Name: "headless.testing:80", Domains: []string{"echo.testing"}, Routes: []*resource.Route{e.route},
			})
		}, status: 502, body: "another service", reason: "unrouted", flags: "NR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			tt.change(e)
			e.answer(hostA, mirror)
			e.start()
			c := e.client()
			c.send("GET /x?y HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
			r, body := c.response("GET")
			if r.StatusCode != tt.status || !strings.Contains(body, tt.body) || r.Header.Get("X-Nasp-Tun-Reason") != tt.reason {
				t.Errorf("%d %v %q, want %d, %q and reason %q", r.StatusCode, r.Header, body, tt.status, tt.body, tt.reason)
			}
			if name, value, ok := strings.Cut(tt.header, ": "); ok && r.Header.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, r.Header.Get(name), value)
			}
			e.record(c, "status", tt.status, "reason", tt.reason, "flags", tt.flags)
		})
	}
}

func passthrough(e *env) {
	e.route.Action.Clusters[0].Name = "PassthroughCluster"
	e.more = append(e.more, &resource.Cluster{Name: "PassthroughCluster", Discovery: resource.OriginalDst, HTTP: resource.Downstream})
}

// What the mesh does not know is passed to where the client wanted to go, in
// clear, by the dialer for that.
func TestPassthrough(t *testing.T) {
	for _, allow := range []bool{false, true} {
		e := newEnv(t)
		e.dst = netip.MustParseAddrPort("203.0.113.7:80")
		outside := newEnv(t).net
		e.cfg.Passthrough = outside.Dial
		e.cfg.OutsideAllow = allow
		vh := e.routes.VirtualHosts[0]
		vh.Name, vh.Domains = "allow_any", []string{"*"}
		if allow { // against the mesh's policy
			vh.Name = "block_all"
			e.route.Action, e.route.Direct = nil, &resource.DirectResponse{Status: 502}
		} else {
			passthrough(e)
		}
		plain(e, outside.Listen("203.0.113.7:80"), mirror)
		e.start()
		c := e.client()
		c.send("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
		if r, body := c.response("GET"); r.StatusCode != 200 || !strings.Contains(body, "Host: www.example.com\r\n") {
			t.Errorf("%d %s", r.StatusCode, body)
		}
		e.record(c, "status", 200, "security", "none", "upstream", "203.0.113.7:80")
		if d := e.net.Dials(); len(d) != 0 {
			t.Errorf("the mesh's dialer dialled %v", d)
		}
	}
}

// A configuration that is not there yet is no reason to let anything through.
func TestNotConfigured(t *testing.T) {
	for _, tt := range []struct {
		manager  *resource.HTTPManager
		snapshot func() *catalog.Snapshot
		status   int
		reason   string
	}{
		{&resource.HTTPManager{RouteName: "80"}, func() *catalog.Snapshot { return nil }, 503, "not_ready"},
		{&resource.HTTPManager{RouteName: "81"}, nil, 404, "no_route"},
	} {
		e := newEnv(t).start()
		near, done := e.serveWith(httpproxy.Downstream{Manager: tt.manager, Dst: e.dst, Snapshot: tt.snapshot})
		c := &client{t: t, Conn: near, br: newReader(near), done: done}
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
		if r, _ := c.response("GET"); r.StatusCode != tt.status || r.Header.Get("X-Nasp-Tun-Reason") != tt.reason {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		e.record(c, "reason", tt.reason)
	}
}

func TestWeightedClusters(t *testing.T) {
	e := newEnv(t)
	two := *e.cluster
	two.Name = "outbound|80|v2|echo.testing"
	e.endpoints(hostB)
	e.more = []*resource.Cluster{{Name: two.Name, Transport: two.Transport, Endpoints: two.Endpoints}}
	e.route.Action.Clusters = []resource.WeightedCluster{{Name: echoName, Weight: 1}, {Name: two.Name, Weight: 3}}
	seen := map[string]int{}
	e.answer(hostA, func(string, *server) string { return ok("v2") })
	e.answer(hostB, func(string, *server) string { return ok("v1") })
	e.start()
	c := e.client()
	for range 400 {
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
		_, body := c.response("GET")
		seen[body]++
	}
	if seen["v1"] < 50 || seen["v2"] < 230 || seen["v1"]+seen["v2"] != 400 {
		t.Errorf("shares of 1:3 gave %v", seen)
	}
}

// A connection that is idle for the listener's idle time-out is closed.
func TestClientIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.manager.IdleTimeout = 60e9
		e.answer(hostA, mirror)
		e.start()
		c := e.client()
		c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
		c.response("GET")
		if rest, err := c.all(); rest != "" || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
	})
}
