// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"errors"
	"io"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

var uuid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// What a client sends arrives as it is meant: target and query untouched, host
// in its own case, field values whole; nothing is added but what a sidecar adds.
func TestRequestPassesUnchanged(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, mirror)
	e.start()
	c := e.client()
	c.send("GET /a%2fb//c;d?q=1;2&%zz=3 HTTP/1.1\r\nHost: eCHO.testing\r\nx-lower: a\r\nForwarded: for=1.2.3.4\r\n" +
		"X-Forwarded-For: 1.2.3.4\r\nAccept: b\r\nAccept: c\r\nConnection: close, x-hop\r\nX-Hop: secret\r\nKeep-Alive: 5\r\n" +
		"X-Envoy-Max-Retries: 9\r\nTE: trailers, deflate\r\n\r\n")
	r, body := c.response("GET")
	want := "GET /a%2fb//c;d?q=1;2&%zz=3 HTTP/1.1\r\nHost: eCHO.testing\r\nAccept: b\r\nAccept: c\r\nForwarded: for=1.2.3.4\r\n" +
		"Te: trailers\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\nX-Lower: a\r\nX-Request-Id: ID\r\n\r\n"
	if got := uuid.ReplaceAllString(body, "ID"); got != want {
		t.Errorf("upstream got\n%s\nwant\n%s", got, want)
	}
	if !r.Close {
		t.Error("the connection was to be closed, and the client is not told")
	}
	e.record(c, "status", 200, "flags", "", "reason", "", "host", "eCHO.testing", "peer", echoID, "security", "mutual_tls", "tries", 1)
}

func TestResponsePassesUnchanged(t *testing.T) {
	for _, tt := range []struct{ name, method, from, want string }{
		{
			"reason phrase, no Date or type added", "GET", "HTTP/1.1 200 Quite Fine\r\nContent-Length: 2\r\nx-b: 1\r\nX-a: 2\r\n\r\nhi",
			"HTTP/1.1 200 Quite Fine\r\nX-A: 2\r\nX-B: 1\r\nContent-Length: 2\r\n\r\nhi",
		},
		{
			"hop-by-hop and Envoy's own", "GET", "HTTP/1.1 200 OK\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=4\r\nX-Envoy-Upstream-Service-Time: 3\r\nServer: envoy\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nServer: envoy\r\nContent-Length: 0\r\n\r\n",
		},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n", "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"},
		{
			"chunked is chunked anew", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n002;ext=1\r\nde\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
		},
		{
			"trailers", "GET", "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\nX-More: 1\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-More: 1\r\nX-Sum: 9\r\n\r\n",
		},
		{
			"103", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.answer(hostA, func(string, *server) string { return tt.from })
			e.start()
			c := e.client()
			for range 2 { // the connection stays good for another one
				c.send(tt.method + " / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
				c.expect(tt.want)
			}
			if s := e.cfg.Upstream.Status(); s.Dials != 1 {
				t.Errorf("%d upstream connections for two requests", s.Dials)
			}
		})
	}
}

// A response that only the end of its connection ends becomes a chunked one.
func TestCloseDelimitedResponse(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		if _, err := s.head(); err == nil {
			s.say("HTTP/1.0 200 OK\r\n\r\nall of it")
		}
	})
	e.start()
	for _, tt := range []struct{ version, want string }{
		{"HTTP/1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nall of it\r\n0\r\n\r\n"},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nall of it"},
	} {
		c := e.client()
		c.send("GET / " + tt.version + "\r\nHost: echo.testing\r\n\r\n")
		c.expect(tt.want)
		if tt.version == "HTTP/1.0" {
			if rest, err := c.all(); rest != "" || err != nil {
				t.Errorf("after the body: %q, %v", rest, err)
			}
		}
	}
}

func TestHTTP10Client(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, func(head string, _ *server) string {
		if !strings.HasPrefix(head, "GET / HTTP/1.1\r\n") {
			return ok("upstream got " + head)
		}
		return "HTTP/1.1 103 Early Hints\r\n\r\n" + ok("hi")
	})
	e.start()
	c := e.client()
	c.send("GET / HTTP/1.0\r\nHost: echo.testing\r\nConnection: keep-alive\r\n\r\n")
	c.expect("HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi")
	c.send("GET / HTTP/1.0\r\nHost: echo.testing\r\n\r\n")
	c.expect("HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
	if rest, err := c.all(); rest != "" || err != nil {
		t.Errorf("then %q, %v", rest, err)
	}
}

// Without a Host the virtual address that was dialled tells the service.
func TestHTTP10WithoutHost(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, mirror)
	e.start()
	c := e.client()
	c.send("GET / HTTP/1.0\r\n\r\n")
	if r, body := c.response("GET"); r.StatusCode != 200 || !strings.Contains(body, "Host: "+vip+"\r\n") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
}

func TestPipelinedRequests(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, func(head string, s *server) string {
		b := make([]byte, contentLength(head))
		if _, err := io.ReadFull(s.br, b); err != nil {
			return ""
		}
		return ok(strings.Fields(head)[1] + " " + string(b))
	})
	e.start()
	c := e.client()
	c.send("\r\nGET /1 HTTP/1.1\r\nHost: echo.testing\r\n\r\nPOST /2 HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 3\r\n\r\nabc" +
		"GET http://echo.testing?x HTTP/1.1\r\nHost: other\r\n\r\nPOST /4 HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 1\r\n\r\nz")
	for _, want := range []string{"/1 ", "/2 abc", "/?x ", "/4 z"} {
		if _, body := c.response("GET"); body != want {
			t.Errorf("got %q, want %q", body, want)
		}
	}
}

func TestTargetForms(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, mirror)
	e.start()
	for _, tt := range []struct{ target, host, line, sent string }{
		{"http://echo.testing/x/y?z", "ignored", "/x/y?z", "echo.testing"},
		{"http://echo.testing", "ignored", "/", "echo.testing"},
		{"HTTP://echo.testing:80?q", "ignored", "/?q", "echo.testing:80"},
		{"/100%", "echo.testing", "/100%", "echo.testing"},
		{"/%zz?%", "echo.testing", "/%zz?%", "echo.testing"},
		{"//a//b", "echo.testing", "//a//b", "echo.testing"},
		{"/../x/./y", "echo.testing", "/../x/./y", "echo.testing"},
		{"/ü", "echo.testing", "/ü", "echo.testing"},
	} {
		c := e.client()
		c.send("GET " + tt.target + " HTTP/1.1\r\nHost: " + tt.host + "\r\n\r\n")
		if r, body := c.response("GET"); r.StatusCode != 200 || !strings.HasPrefix(body, "GET "+tt.line+" HTTP/1.1\r\nHost: "+tt.sent+"\r\n") {
			t.Errorf("%s: %d %s", tt.target, r.StatusCode, body)
		}
	}
}

// Two parsers that disagree about where a request ends are how requests are
// smuggled: whatever two could read differently is refused.
func TestBadRequests(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: echo.testing\r\n"
	const post = "POST / HTTP/1.1\r\nHost: echo.testing\r\n"
	const chunks = "\r\n0\r\n\r\n"
	for _, tt := range []struct {
		name, request string
		status        string
	}{
		{"CL and TE", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n" + chunks, "400"},
		{"TE and CL, folded", post + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n" + chunks, "501"},
		{"TE on HTTP/1.0", "POST / HTTP/1.0\r\nHost: echo.testing\r\nTransfer-Encoding: chunked\r\n" + chunks, "400"},
		{"TE on HTTP/1.0 with CL", "POST / HTTP/1.0\r\nHost: echo.testing\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n" + chunks, "400"},
		{"TE: x", post + "Transfer-Encoding: x\r\n" + chunks, "501"},
		{"TE: gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n" + chunks, "501"},
		{"TE twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + chunks, "400"},
		{"TE with VT", post + "Transfer-Encoding: \vchunked\r\n" + chunks, "400"},
		{"CL +3", post + "Content-Length: +3\r\n\r\nabc", "400"},
		{"CL 3,3", post + "Content-Length: 3,3\r\n\r\nabc", "400"},
		{"CL twice", post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "400"},
		{"CL differing", post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400"},
		{"CL negative", post + "Content-Length: -1\r\n\r\n", "400"},
		{"space before colon", get + "X-A : 1\r\n\r\n", "400"},
		{"empty name", get + ": 1\r\n\r\n", "400"},
		{"no colon", get + "garbage\r\n\r\n", "400"},
		{"NUL in a value", get + "X-A: a\x00b\r\n\r\n", "400"},
		{"bare CR in a value", get + "X-A: a\rb\r\n\r\n", "400"},
		{"DEL in a value", get + "X-A: a\x7f\r\n\r\n", "400"},
		{"two Hosts", get + "Host: other\r\n\r\n", "400"},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "400"},
		{"bad Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
		{"folded first line", "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n", "400"},
		{"four words", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "505"},
		{"two words", "GET /\r\nHost: a\r\n\r\n", "400"},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", "505"},
		{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505"},
		{"control character in the target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"method", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"CONNECT", "CONNECT echo.testing:443 HTTP/1.1\r\nHost: echo.testing:443\r\n\r\n", "405"},
		{"authority form", "GET echo.testing HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", "400"},
		{"one long header", get + "X: " + strings.Repeat("a", 128<<10) + "\r\n\r\n", "431"},
		{"many headers", get + strings.Repeat("X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 4<<10) + "\r\n", "431"},
		{"bad chunk size", post + "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", "400"},
		{"chunk of the wrong size", post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", "400"},
		{"half a head", "GET / HTTP/1.1\r\nHost: a\r\nX: ", "400"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.serve(hostA, func(s *server) { _, _ = io.Copy(io.Discard, s.br) })
			e.start()
			c := e.client()
			c.send(tt.request)
			_ = c.CloseWrite()
			got, err := c.all()
			if err != nil || !strings.HasPrefix(got, "HTTP/1.") || got[9:12] != tt.status || strings.Count(got, "X-Nasp-Tun-Reason:") != 1 {
				t.Fatalf("got %.100q, %v; want one %s", got, err, tt.status)
			}
			if !strings.Contains(got, "X-Nasp-Tun-Reason: bad_request\r\n") || !strings.Contains(got, "Connection: close\r\n") {
				t.Errorf("the answer does not tell: %q", got)
			}
			e.record(c, "flags", "DPE", "reason", "bad_request")
		})
	}
}

// Lax forms that are not ambiguous are accepted and made regular.
func TestLaxRequests(t *testing.T) {
	for _, tt := range []struct{ name, request, want string }{
		{"LF", "GET / HTTP/1.1\nHost: echo.testing\nX-A: 1\n\n", "X-A: 1\r\n"},
		{"fold", "GET / HTTP/1.1\r\nHost: echo.testing\r\nX-A: 1\r\n\t 2\r\n\r\n", "X-A: 1 2\r\n"},
		{"empty value", "GET / HTTP/1.1\r\nHost: echo.testing\r\nX-A:\r\n\r\n", "X-A: \r\n"},
		{"high bytes", "GET / HTTP/1.1\r\nHost: echo.testing\r\nX-A: \xff\xc3\xbc\r\n\r\n", "X-A: \xff\xc3\xbc\r\n"},
		{"60 KiB of header", "GET / HTTP/1.1\r\nHost: echo.testing\r\nX-A: " + strings.Repeat("a", 60<<10) + "\r\n\r\n", "X-A: " + strings.Repeat("a", 60<<10) + "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.answer(hostA, mirror)
			e.start()
			c := e.client()
			for range 2 {
				c.send(tt.request)
				if r, body := c.response("GET"); r.StatusCode != 200 || !strings.Contains(body, tt.want) {
					t.Errorf("%d %.200q", r.StatusCode, body)
				}
			}
		})
	}
}

func TestBadResponses(t *testing.T) {
	for _, tt := range []struct {
		name, response, status, reason, flags string
	}{
		{"not HTTP", "SSH-2.0-OpenSSH_9.9\r\n\r\n", "502", "upstream_protocol", "UPE"},
		{"bad field name", "HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length: 0\r\n\r\n", "502", "upstream_protocol", "UPE"},
		{"control character", "HTTP/1.1 200 OK\r\nX-A: a\x00\r\nContent-Length: 0\r\n\r\n", "502", "upstream_protocol", "UPE"},
		{"endless head", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 4<<10) + "\r\n", "502", "upstream_protocol", "UPE"},
		{"nothing", "", "503", "upstream_reset", "UC"},
		{"half a head", "HTTP/1.1 200 OK\r\nX-A: 1\r\n", "503", "upstream_reset", "UC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.serve(hostA, func(s *server) {
				if _, err := s.head(); err == nil {
					s.say(tt.response)
				}
			})
			e.start()
			c := e.client()
			c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
			r, body := c.response("GET")
			if r.Status[:3] != tt.status || r.Header.Get("X-Nasp-Tun-Reason") != tt.reason {
				t.Errorf("%s %v %s", r.Status, r.Header, body)
			}
			e.record(c, "status", r.StatusCode, "reason", tt.reason, "flags", tt.flags)
		})
	}
}

// A body that was cut short must not look whole.
func TestUpstreamDiesInsideABody(t *testing.T) {
	for _, head := range []string{"Content-Length: 1000", "Transfer-Encoding: chunked", "X-Ends: with the connection"} {
		for _, how := range []string{"RST", "FIN"} {
			t.Run(head+" "+how, func(t *testing.T) {
				e := newEnv(t)
				seen := make(chan struct{})
				e.serve(hostA, func(s *server) {
					if _, err := s.head(); err != nil {
						return
					}
					body := "half"
					if strings.HasSuffix(head, "chunked") {
						body = "4\r\nhalf\r\n"
					}
					s.say("HTTP/1.1 200 OK\r\n" + head + "\r\n\r\n" + body)
					<-seen
					if how == "RST" {
						s.raw().Abort()
					} else {
						_ = s.raw().CloseWrite() // no close_notify
					}
				})
				e.start()
				c := e.client()
				c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\n\r\n")
				for got := ""; !strings.Contains(got, "half"); {
					b := make([]byte, 512)
					n, err := c.br.Read(b)
					if err != nil {
						t.Fatalf("got %q, then %v", got, err)
					}
					got += string(b[:n])
				}
				close(seen)
				if rest, err := c.all(); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("then %q and %v, want a reset", rest, err)
				}
				e.record(c, "status", 200, "reason", "upstream_reset", "flags", "UC", "bytes_out", 4)
			})
		}
	}
}
