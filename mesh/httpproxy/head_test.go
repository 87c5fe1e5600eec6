// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/http/httpguts"
)

func newHeadReader(r io.Reader) *headReader {
	c := &counter{r: r}
	return &headReader{conn: c, br: bufio.NewReaderSize(c, readBuffer)}
}

// However its bytes come in, a head is found at its end, and what follows is
// left alone.
func TestPeekHead(t *testing.T) {
	long := "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 10<<10) + "\r\n\r\n"
	for _, tt := range []struct{ in, head string }{
		{"GET / HTTP/1.1\r\n\r\nbody", "GET / HTTP/1.1\r\n\r\n"},
		{"GET / HTTP/1.1\n\nbody", "GET / HTTP/1.1\n\n"},
		{"GET / HTTP/1.1\r\n\nbody", "GET / HTTP/1.1\r\n\n"},
		{"GET / HTTP/1.1\n\r\nbody", "GET / HTTP/1.1\n\r\n"},
		{"\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n\r\n"},
		{long + "body", long},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader} {
			h := newHeadReader(wrap(strings.NewReader(tt.in)))
			head, err := h.peekHead(maxHead)
			if err != nil || string(head) != tt.head {
				t.Errorf("%s: %.40q, %v, want %.40q", name, head, err, tt.head)
				continue
			}
			if rest, err := io.ReadAll(h.br); err != nil || !strings.HasSuffix(tt.in, string(rest)) || !bytes.HasPrefix(rest, []byte(tt.head)) {
				t.Errorf("%s: then %.60q, %v", name, rest, err)
			}
		}
	}
}

func TestPeekHeadLimit(t *testing.T) {
	for _, size := range []int{maxHead - 1, maxHead, maxHead + 1, 2 * maxHead} {
		start, end := "GET / HTTP/1.1\r\nX: ", "\r\n\r\n"
		in := start + strings.Repeat("a", size-len(start)-len(end)) + end
		_, err := newHeadReader(strings.NewReader(in)).peekHead(maxHead)
		var b *badRequest
		if tooLong := errors.As(err, &b) && b.status == http.StatusRequestHeaderFieldsTooLarge; tooLong != (size > maxHead) {
			t.Errorf("a head of %d bytes: %v", size, err)
		}
	}
	if _, err := newHeadReader(iotest.DataErrReader(strings.NewReader("GET / HT"))).peekHead(maxHead); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
	if _, err := newHeadReader(strings.NewReader("")).peekHead(maxHead); !errors.Is(err, io.EOF) {
		t.Errorf("empty: %v", err)
	}
}

// The writer's framing is what a reader takes for the same body, whatever the
// pieces it came in.
func TestRelayFraming(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 10<<10)
	for _, size := range []int{0, 1, 15, 16, 255, 256, 4095, 4096, relayBuffer - 8, relayBuffer, relayBuffer + 1, len(body)} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "EOF with data": iotest.DataErrReader,
		} {
			var out bytes.Buffer
			var w writer
			w.reset(&out)
			w.str("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			n := 0
			if s, err := w.relay(wrap(bytes.NewReader(body[:size])), true, func(m int) { n += m }); s != sideNone || err != nil {
				t.Fatal(s, err)
			}
			w.endChunks(http.Header{"X-Sum": {"1"}}, nil)
			if err := w.flush(); err != nil || n != size || w.n != int64(out.Len()) {
				t.Errorf("%d bytes, %d counted of %d: %v", n, w.n, out.Len(), err)
			}
			w.drop()
			r, err := http.ReadResponse(bufio.NewReader(&out), nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, body[:size]) || r.Trailer.Get("X-Sum") != "1" {
				t.Errorf("%s, %d bytes: %d came back, %v, %v", name, size, len(got), err, r.Trailer)
			}
		}
	}
}

func TestRelayTellsWhoFailed(t *testing.T) {
	var w writer
	w.reset(io.Discard)
	if s, err := w.relay(iotest.ErrReader(io.ErrClosedPipe), false, func(int) {}); s != sideRead || !errors.Is(err, io.ErrClosedPipe) {
		t.Error(s, err)
	}
	w.drop()
	_, broken := io.Pipe()
	_ = broken.Close()
	w.reset(broken)
	if s, err := w.relay(strings.NewReader(strings.Repeat("x", 3*relayBuffer)), false, func(int) {}); s != sideWrite || !errors.Is(err, io.ErrClosedPipe) {
		t.Error(s, err)
	}
	w.drop()
}

func TestNormalizePath(t *testing.T) {
	for in, want := range map[string]string{
		"/":                 "/",
		"/a/b?c=/../d":      "/a/b?c=/../d",
		"/a/./b":            "/a/b",
		"/a/../b":           "/b",
		"/../../b":          "/b",
		"/a/b/..":           "/a/",
		"/a/b/.":            "/a/b/",
		"/a/%2e%2E/b":       "/b",
		`/a\..\b`:           "/b",
		"/a//b///c":         "/a/b/c",
		"/a/..%2fb/.hidden": "/a/..%2fb/.hidden",
		"*":                 "*",
	} {
		if got := normalizePath(in, true, true); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// What checkHead lets pass, http.ReadRequest understands as checkHead did:
// one Host, one framing, clean names and values. And nothing that is sent on
// can end a line early.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /a%2f?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n0\n\n",
		"GET http://h/p?q HTTP/1.0\r\nX: 1\r\n 2\r\n\r\n",
		"GET /% HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		h := newHeadReader(bytes.NewReader(in))
		r, err := h.readRequest(maxHead)
		if err != nil {
			return
		}
		if r.ProtoMajor != 1 || r.ProtoMinor > 1 || r.ProtoMinor == 1 && r.Host == "" {
			t.Errorf("%s with Host %q passed", r.Proto, r.Host)
		}
		if len(r.TransferEncoding) > 0 && (r.ProtoMinor == 0 || r.Header["Content-Length"] != nil) {
			t.Errorf("framing: %v, %v", r.TransferEncoding, r.Header)
		}
		for k, vs := range r.Header {
			for _, v := range vs {
				if !httpguts.ValidHeaderFieldName(k) || !httpguts.ValidHeaderFieldValue(v) {
					t.Errorf("field %q: %q passed", k, v)
				}
			}
		}
		if strings.ContainsAny(r.RequestURI, " \r\n\x00") || strings.ContainsAny(r.Host+r.Method, " \r\n\x00") {
			t.Errorf("request line %q %q to %q passed", r.Method, r.RequestURI, r.Host)
		}
		_ = stripHop(r.Header)
		var out bytes.Buffer
		var w writer
		w.reset(&out)
		w.str(r.Method + " " + r.RequestURI + " HTTP/1.1\r\nHost: h\r\n")
		w.fields(r.Header, nil)
		w.str("\r\n")
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if err := checkHead(out.Bytes()); err != nil {
			t.Errorf("what would be sent on is refused: %v\n%q", err, out.Bytes())
		}
	})
}
