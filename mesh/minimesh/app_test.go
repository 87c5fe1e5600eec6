// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// readLine reads one line, and nothing after it.
func readLine(t *testing.T, r io.Reader) string {
	t.Helper()
	var line []byte
	b := make([]byte, 1)
	for len(line) == 0 || line[len(line)-1] != '\n' {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		line = append(line, b[0])
	}
	return string(line)
}

func TestTCPApps(t *testing.T) {
	const size = 3<<20 + 17 // no multiple of anything
	m := start(t, minimesh.Config{Services: []minimesh.Service{{
		Name: "apps", Namespace: "testing", Endpoints: []minimesh.Endpoint{{}},
		Ports: []minimesh.Port{
			{Number: 3306, Protocol: minimesh.TCP, App: minimesh.Banner},
			{Number: 1, Protocol: minimesh.TCP, App: minimesh.Sink},
			{Number: 2, Protocol: minimesh.TCP, App: minimesh.Source},
		},
	}}})
	cfg := client(t, m, laptopCert(t, m), alpnTCP)
	open := func(port uint16) *tls.Conn { return mustConnect(t, m.Endpoints("apps", "testing", port)[0], cfg) }
	h := sha256.New()
	if _, err := io.Copy(h, minimesh.Pattern(size)); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", h.Sum(nil))

	c := open(3306)
	if got := readLine(t, c); got != "220 apps-1 ready\r\n" {
		t.Errorf("banner %q", got)
	}
	if _, err := io.WriteString(c, "HELO\n"); err != nil {
		t.Fatal(err)
	}
	if got := readLine(t, c); got != "HELO\n" {
		t.Errorf("echo %q", got)
	}

	c = open(1)
	if _, err := io.Copy(c, minimesh.Pattern(size)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, want := readLine(t, c), fmt.Sprintf("%d %s\n", size, sum); got != want {
		t.Errorf("sink says %q, want %q", got, want)
	}

	c = open(2)
	if _, err := fmt.Fprintf(c, "%d\n", size); err != nil {
		t.Fatal(err)
	}
	h.Reset()
	n, err := io.Copy(h, c)
	if got := fmt.Sprintf("%x", h.Sum(nil)); err != nil || n != size || got != sum {
		t.Errorf("source gave %d bytes with sum %s, %v", n, got, err)
	}
}

// web opens the HTTP port of echo.testing by HTTP/1.1 and by HTTP/2.
func web(t *testing.T, m *minimesh.Mesh) map[string]*http.Client {
	t.Helper()
	cert := laptopCert(t, m)
	addr := m.Endpoints("echo", "testing", 80)[0]
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true) // by prior knowledge, over the TLS of connect
	h2 := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return connect(t, addr, client(t, m, cert, alpnH2))
	}}
	t.Cleanup(h2.CloseIdleConnections)
	return map[string]*http.Client{
		"HTTP/1.1": httpClient(t, addr, client(t, m, cert, alpnHTTP)),
		"HTTP/2.0": {Transport: h2},
	}
}

// A site asks one HTTP client of the echo for things.
type site struct {
	t     *testing.T
	proto string
	c     *http.Client
}

func (s site) request(method, path string, body io.Reader) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(waitCtx(s.t), method, "http://echo.testing"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s site) do(r *http.Request) *http.Response {
	s.t.Helper()
	resp, err := s.c.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.Proto != s.proto {
		s.t.Errorf("spoke %s", resp.Proto)
	}
	return resp
}

func (s site) get(path string) *http.Response {
	s.t.Helper()
	return s.do(s.request(http.MethodGet, path, nil))
}

// post sends a body of unknown length.
func (s site) post(path string, body io.Reader) *http.Response {
	s.t.Helper()
	return s.do(s.request(http.MethodPost, path, struct{ io.Reader }{body}))
}

func (s site) text(resp *http.Response) string {
	s.t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// eachProto runs a test by HTTP/1.1 and by HTTP/2.
func eachProto(t *testing.T, test func(*testing.T, site)) {
	m := start(t, minimesh.Config{})
	for proto, c := range web(t, m) {
		t.Run(proto, func(t *testing.T) { test(t, site{t, proto, c}) })
	}
}

func TestHTTPAnswers(t *testing.T) {
	eachProto(t, func(t *testing.T, s site) {
		for path, want := range map[string]int{
			"/status/418": 418, "/status/100": 400, "/status/x": 400, "/delay/x": 400, "/ws": 426,
		} {
			if got := s.get(path).StatusCode; got != want {
				t.Errorf("%s: %d, want %d", path, got, want)
			}
		}
		for path, want := range map[string]string{
			"/delay/1ms": "waited 1ms\n", "/stream?n=2": "data: 1\n\ndata: 2\n\n",
		} {
			if got := s.text(s.get(path)); got != want {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}
		for try, want := range []int{504, 504, 200} {
			resp := s.get("/flaky/" + s.proto[len("HTTP/"):] + "?fail=2&code=504")
			if resp.StatusCode != want || resp.Header.Get("X-Tries") != fmt.Sprint(try+1) {
				t.Errorf("flaky: %d at try %s, want %d", resp.StatusCode, resp.Header.Get("X-Tries"), want)
			}
		}
		if resp := s.post("/early", strings.NewReader("abc")); resp.StatusCode != 413 {
			t.Errorf("early: %d", resp.StatusCode)
		}
		resp := s.get("/abort")
		if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "half" {
			t.Errorf("abort: %q, %v", b, err)
		}
	})
}

func TestHTTPBodies(t *testing.T) {
	const size = 300_001
	h := sha256.New()
	if _, err := io.Copy(h, minimesh.Pattern(size)); err != nil {
		t.Fatal(err)
	}
	eachProto(t, func(t *testing.T, s site) {
		if got, want := s.text(s.post("/upload", minimesh.Pattern(size))), fmt.Sprintf("%d %x\n", size, h.Sum(nil)); got != want {
			t.Errorf("upload: %q, want %q", got, want)
		}
		for query, length := range map[string]int64{"": size, "&chunked": -1} {
			resp := s.get(fmt.Sprintf("/download?size=%d%s", size, query))
			got := sha256.Sum256([]byte(s.text(resp)))
			if !bytes.Equal(got[:], h.Sum(nil)) || resp.ContentLength != length {
				t.Errorf("download%s: length %d, sum %x", query, resp.ContentLength, got)
			}
		}
		if got := s.text(s.post("/", strings.NewReader("abc"))); !strings.HasSuffix(got, "\nRequest Body: 3 bytes\n") {
			t.Errorf("echo of a body: %q", got)
		}
		testDuplex(t, s.c)
	})
}

func TestHTTPBesideTheBody(t *testing.T) {
	eachProto(t, func(t *testing.T, s site) {
		r := s.request(http.MethodPost, "/trailers", struct{ io.Reader }{strings.NewReader("abc")})
		r.Trailer = http.Header{"X-Sum": {"900150"}}
		resp := s.do(r)
		if got := s.text(resp); got != "3 bytes, 1 trailers\n" || resp.Trailer.Get("X-Sum") != "900150" || resp.Trailer.Get("X-Checked") != "3" {
			t.Errorf("trailers: %q %v", got, resp.Trailer)
		}
		var hint int
		r = s.request(http.MethodGet, "/hints", nil)
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hint = code; return nil },
		}))
		if got := s.text(s.do(r)); got != "hinted\n" || hint != 103 {
			t.Errorf("hints: %q after %d", got, hint)
		}
	})
}

// testDuplex holds a conversation within one request.
func testDuplex(t *testing.T, c *http.Client) {
	t.Helper()
	pr, pw := io.Pipe()
	r, err := http.NewRequestWithContext(waitCtx(t), http.MethodPost, "http://echo.testing/duplex", pr)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, word := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(pw, word); err != nil {
			t.Fatal(err)
		}
		if got := readLine(t, resp.Body); got != word {
			t.Errorf("duplex: %q, want %q", got, word)
		}
	}
	pw.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) > 0 {
		t.Errorf("duplex ends with %q, %v", b, err)
	}
}

// The key and its answer are RFC 6455's own, section 1.3.
func TestWebSocket(t *testing.T) {
	m := start(t, minimesh.Config{})
	c := mustConnect(t, m.Endpoints("echo", "testing", 80)[0], client(t, m, laptopCert(t, m), alpnHTTP))
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: echo.testing\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	rd := bufio.NewReader(c)
	resp, err := http.ReadResponse(rd, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("answer %v", resp)
	}
	mask := []byte{1, 2, 3, 4}
	for _, payload := range [][]byte{[]byte("hi"), bytes.Repeat([]byte("a"), 200), bytes.Repeat([]byte("b"), 70_000)} {
		masked := bytes.Clone(payload)
		for i := range masked {
			masked[i] ^= mask[i%4]
		}
		head := []byte{0x81, 0x80}
		switch n := len(payload); {
		case n < 126:
			head[1] |= byte(n)
		case n < 1<<16:
			head = append(head[:1], 0x80|126, byte(n>>8), byte(n))
		default:
			head = append(head[:1], 0x80|127, 0, 0, 0, 0, 0, byte(n>>16), byte(n>>8), byte(n))
		}
		if _, err := c.Write(append(append(head, mask...), masked...)); err != nil {
			t.Fatal(err)
		}
		want := append(bytes.Clone(head[:]), payload...)
		want[1] &^= 0x80
		got := make([]byte, len(want))
		if _, err := io.ReadFull(rd, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a frame of %d bytes came back as %x…, %v", len(payload), got[:4], err)
		}
	}
	// A close frame is answered, and ends it.
	if _, err := c.Write([]byte{0x88, 0x80, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(rd); err != nil || !bytes.Equal(b, []byte{0x88, 0}) {
		t.Errorf("closed with %x, %v", b, err)
	}
}
