// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// h2client returns an HTTP/2 client whose one connection goes through the
// proxy.
func (e *env) h2client() *http.ClientConn {
	e.t.Helper()
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	near, done := e.serveWith(httpproxy.Downstream{Manager: e.manager, Dst: e.dst})
	tr := &http.Transport{Protocols: &p, DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
	cc, err := tr.NewClientConn(e.t.Context(), "http", vip)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = cc.Close(); <-done })
	return cc
}

func request(t *testing.T, method, path string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://echo.testing"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reflect answers with what it got: protocol, target, host and body, and with
// a trailer that holds the request's.
var reflect = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Got", r.Proto+" "+r.RequestURI+" "+r.Host+" ua="+r.UserAgent()+" xfp="+r.Header.Get("X-Forwarded-Proto"))
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // HTTP/1 only
	_ = rc.Flush()
	b := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(b)
		if n > 0 {
			_, _ = w.Write(b[:n])
			_ = rc.Flush()
		}
		if err != nil {
			break
		}
	}
	w.Header().Set(http.TrailerPrefix+"X-Sum", "sum of "+r.Trailer.Get("X-Trailer"))
})

// Each protocol of the client goes to each protocol of the endpoint: bodies,
// trailers and flow in both directions.
func TestBridging(t *testing.T) {
	for _, tt := range []struct {
		client  string
		cluster resource.HTTPVersion
		want    string
	}{
		{"h1", resource.HTTP1, "HTTP/1.1"},
		{"h1", resource.HTTP2, "HTTP/2.0"},
		{"h1", resource.Downstream, "HTTP/1.1"},
		{"h1", resource.AutoHTTP, "HTTP/2.0"},
		{"h2", resource.HTTP1, "HTTP/1.1"},
		{"h2", resource.HTTP2, "HTTP/2.0"},
		{"h2", resource.Downstream, "HTTP/2.0"},
	} {
		t.Run(tt.client+" to "+tt.want, func(t *testing.T) {
			e := newEnv(t)
			e.cluster.HTTP = tt.cluster
			e.h2serve(hostA, reflect)
			e.start()
			var rt http.RoundTripper
			if tt.client == "h2" {
				rt = e.h2client()
			} else {
				c := e.client()
				tr := &http.Transport{DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c.Conn, nil }}
				t.Cleanup(tr.CloseIdleConnections)
				rt = tr
			}
			for _, path := range []string{"/a%2fb//c;d?q=1;2&%zz=3", "//double"} {
				r := request(t, "GET", "/", nil)
				r.URL.Opaque = "//echo.testing" + path
				if tt.client == "h1" {
					r.URL.Opaque = path // net/http's client sends an absolute form else
					if strings.HasPrefix(path, "//") {
						continue
					}
				}
				r.Header.Set("User-Agent", "")
				resp, err := rt.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if got := resp.Header.Get("X-Got"); got != tt.want+" "+path+" echo.testing ua= xfp=http" {
					t.Errorf("endpoint got %q", got)
				}
				if resp.Header["Date"] == nil {
					t.Error("the endpoint's Date is lost")
				}
			}

			body := make([]byte, 1<<20)
			_, _ = rand.Read(body)
			r := request(t, "POST", "/", io.NopCloser(strings.NewReader(string(body))))
			r.Trailer = http.Header{"X-Trailer": {"t"}}
			resp, err := rt.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(body) {
				t.Errorf("%d bytes came back (%v)", len(got), err)
			}
			if s := resp.Trailer.Get("X-Sum"); s != "sum of t" {
				t.Errorf("trailers: %v", resp.Trailer)
			}
		})
	}
}

// Each message of a stream passes while the other direction is open.
func TestHTTP2Duplex(t *testing.T) {
	for _, v := range []resource.HTTPVersion{resource.HTTP1, resource.HTTP2} {
		e := newEnv(t)
		e.cluster.HTTP = v
		e.h2serve(hostA, reflect)
		e.start()
		pr, pw := io.Pipe()
		resp, err := e.h2client().RoundTrip(request(t, "POST", "/", pr))
		if err != nil {
			t.Fatal(err)
		}
		for _, msg := range []string{"one", "two"} {
			_, _ = io.WriteString(pw, msg)
			b := make([]byte, 3)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != msg {
				t.Fatalf("%q, %v", b, err)
			}
		}
		_ = pw.Close()
		if rest, err := io.ReadAll(resp.Body); len(rest) != 0 || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
	}
}

// The end of a stream on one side ends it on the other, and only it.
func TestHTTP2Resets(t *testing.T) {
	e := newEnv(t)
	e.cluster.HTTP = resource.HTTP2
	arrived, gone := make(chan struct{}), make(chan struct{})
	e.h2serve(hostA, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/wait":
			close(arrived)
			<-r.Context().Done()
			close(gone)
		case "/die":
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			_, _ = io.WriteString(w, "fine")
		}
	}))
	e.start()
	cc := e.h2client()
	get := func() {
		t.Helper()
		resp, err := cc.RoundTrip(request(t, "GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "fine" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	get()
	resp, err := cc.RoundTrip(request(t, "GET", "/die", nil))
	if err != nil {
		t.Fatal(err)
	}
	var reset http2.StreamError
	if b, err := io.ReadAll(resp.Body); string(b) != "half" || !errors.As(err, &reset) {
		t.Errorf("%q, %v", b, err)
	}
	get()
	ctx, cancel := context.WithCancel(t.Context())
	r := request(t, "GET", "/wait", nil).WithContext(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := cc.RoundTrip(r); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	<-arrived
	cancel()
	<-gone
	wg.Wait()
	get()
	if s := e.cfg.Upstream.Status(); s.Dials != 1 {
		t.Errorf("%d upstream connections", s.Dials)
	}
}

// A reset of the client's stream reaches an HTTP/1 endpoint as a reset of its
// connection.
func TestHTTP2ResetToHTTP1(t *testing.T) {
	e := newEnv(t)
	arrived, gone := make(chan struct{}), make(chan error, 1)
	e.serve(hostA, func(s *server) {
		if _, err := s.head(); err == nil {
			close(arrived)
			_, err := io.Copy(io.Discard, s.br)
			gone <- err
		}
	})
	e.start()
	ctx, cancel := context.WithCancel(t.Context())
	cc := e.h2client()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := cc.RoundTrip(request(t, "GET", "/", nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	<-arrived
	cancel()
	if err := <-gone; err == nil {
		t.Error("the endpoint saw an orderly end")
	}
	wg.Wait()
}

// An early answer to an upload ends the upload.
func TestHTTP2EarlyAnswer(t *testing.T) {
	for _, v := range []resource.HTTPVersion{resource.HTTP1, resource.HTTP2} {
		e := newEnv(t)
		e.cluster.HTTP = v
		e.h2serve(hostA, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}))
		e.start()
		for _, client := range []string{"h1", "h2"} {
			pr, pw := io.Pipe()
			if client == "h2" {
				resp, err := e.h2client().RoundTrip(request(t, "POST", "/", pr))
				if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
					t.Errorf("%v, %v", resp, err)
				}
			} else {
				c := e.client()
				c.send("POST / HTTP/1.1\r\nHost: echo.testing\r\nContent-Length: 100000\r\n\r\n")
				if r, _ := c.response("POST"); r.StatusCode != http.StatusRequestEntityTooLarge {
					t.Errorf("%d", r.StatusCode)
				}
				if rest, err := c.all(); rest != "" || err != nil {
					t.Errorf("then %q, %v", rest, err)
				}
			}
			_ = pw.Close()
		}
	}
}

func TestHTTP2Refusals(t *testing.T) {
	e := newEnv(t)
	e.endpoints()
	e.start()
	resp, err := e.h2client().RoundTrip(request(t, "GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 503 || resp.Header.Get("X-Nasp-Tun-Reason") != "no_endpoint" || !strings.Contains(string(b), echoName) {
		t.Errorf("%v %q %v", resp, b, err)
	}
}

// An informational response passes to an HTTP/2 client too.
func TestHTTP2EarlyHints(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, func(string, *server) string {
		return "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok("x")
	})
	e.start()
	hints := make(chan string, 1)
	r := request(t, "GET", "/", nil)
	r = r.WithContext(withHints(r.Context(), hints))
	resp, err := e.h2client().RoundTrip(r)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if got := <-hints; got != "103 </a>" {
		t.Errorf("hint %q", got)
	}
}
