// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"
)

const (
	// readBuffer holds the usual request with its head and a small body.
	readBuffer = 4 << 10
	// maxHead bounds a request's head. Envoy's default is 60 KiB.
	maxHead = 64 << 10
	// headSlack is room past maxHead for the reader of long heads, so that
	// it can tell a head of just that size from a longer one.
	headSlack = 4 << 10
)

// A badRequest is a request that is refused for what it is.
type badRequest struct {
	status int
	why    string
}

func (e *badRequest) Error() string { return e.why }

func bad(format string, args ...any) error {
	return &badRequest{status: http.StatusBadRequest, why: fmt.Sprintf(format, args...)}
}

// A headReader reads request heads off a connection. Between two heads the
// bodies are read through br.
type headReader struct {
	conn  *counter
	br    *bufio.Reader
	small *bufio.Reader // the pooled one, while br is a long one
}

// counter counts what is read off a connection.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// peekHead waits for a whole head and returns its bytes, with the empty line.
// They stay in the reader, and are valid until it is read from.
func (h *headReader) peekHead(most int) ([]byte, error) {
	seen, skipped := 0, false
	for {
		b, _ := h.br.Peek(h.br.Buffered())
		if !skipped && len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
			// RFC 9112 2.2: one empty line before the request is ignored.
			if _, err := h.br.Discard(2); err != nil {
				return nil, err
			}
			skipped, seen = true, 0
			continue
		}
		if n := headEnd(b, seen); n > 0 {
			if n > most {
				return nil, tooLarge(most)
			}
			return b[:n], nil
		}
		if len(b) > most {
			return nil, tooLarge(most)
		}
		seen = len(b)
		if len(b) == h.br.Size() {
			h.grow(most)
		}
		if _, err := h.br.Peek(len(b) + 1); err != nil {
			if err == io.EOF && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

func tooLarge(most int) error {
	return &badRequest{status: http.StatusRequestHeaderFieldsTooLarge, why: fmt.Sprintf("request head of more than %d bytes", most)}
}

// grow moves what is buffered into a reader that holds a head of any allowed
// size. The connection keeps it: who sends one long head sends more.
func (h *headReader) grow(most int) {
	b, _ := h.br.Peek(h.br.Buffered())
	h.small = h.br
	h.br = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(b)), h.conn), most+headSlack)
	// Fill it, so that the caller finds in it what it saw before. A
	// bytes.Reader cannot fail.
	_, _ = h.br.Peek(len(b))
}

// headEnd returns the length of the head that b begins with, or 0 if it is not
// whole. The first seen bytes were looked at before.
func headEnd(b []byte, seen int) int {
	for i := max(0, seen-3); ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0
		}
		i += n + 1
		switch rest := b[i:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return i + 1
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return i + 2
		}
	}
}

// readRequest reads the next request. Its body is left in br.
func (h *headReader) readRequest(most int) (*http.Request, error) {
	head, err := h.peekHead(most)
	if err != nil {
		return nil, err
	}
	if err := checkHead(head); err != nil {
		return nil, err
	}
	target := string(target(head))
	if unparsable(target) {
		h.disguise(head)
	}
	r, err := http.ReadRequest(h.br)
	if err != nil {
		return nil, bad("%v", err)
	}
	r.RequestURI = target
	return r, checkRequest(r)
}

// target returns the second word of a head that passed checkHead.
func target(head []byte) []byte {
	line := head[:bytes.IndexByte(head, '\n')]
	_, line, _ = bytes.Cut(line, []byte{' '})
	return line[:bytes.LastIndexByte(line, ' ')]
}

// unparsable reports whether net/url refuses the path, as it does for a "%" that
// begins no escape.
func unparsable(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	if !strings.HasPrefix(path, "/") || !strings.Contains(path, "%") {
		return false
	}
	_, err := url.ParseRequestURI(path)
	return err != nil
}

// disguise puts "/" in the place of a target that net/url cannot parse, as
// "/100%": a proxy has no need to, and the endpoint may think otherwise.
func (h *headReader) disguise(head []byte) {
	method, _, _ := bytes.Cut(head, []byte{' '})
	line := head[:bytes.IndexByte(head, '\n')]
	rest := head[bytes.LastIndexByte(line, ' '):]
	fake := bytes.Join([][]byte{method, []byte(" /"), rest}, nil)
	if _, err := h.br.Discard(len(head)); err != nil {
		return // cannot be: the head is buffered
	}
	h.br = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(fake), h.br), max(h.br.Size(), readBuffer))
}

// checkHead looks at the bytes of a head for what http.ReadRequest does not
// see or has forgotten when it returns: field names and values with bytes that
// they may not have, two lengths for one body, more than one Host.
//
// Obsolete line folding is accepted and becomes a space, and so is LF alone as
// the end of a line: both are made regular before they are passed on, as Envoy
// does by default.
func checkHead(head []byte) error {
	line, rest := cutLine(head)
	version, err := checkRequestLine(line)
	if err != nil {
		return err
	}
	var hosts, lengths, codings int
	for first := true; ; first = false {
		if line, rest = cutLine(rest); len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			if first {
				return bad("header begins with a folded line")
			}
			if err := checkValue(line); err != nil {
				return err
			}
			continue
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !httpguts.ValidHeaderFieldName(string(name)) {
			return bad("malformed header field name %.40q", name)
		}
		if err := checkValue(value); err != nil {
			return err
		}
		switch {
		case fold(name, "host"):
			hosts++
		case fold(name, "content-length"):
			lengths++
		case fold(name, "transfer-encoding"):
			codings++
			if !fold(bytes.Trim(value, " \t"), "chunked") {
				return &badRequest{status: http.StatusNotImplemented, why: fmt.Sprintf("unsupported transfer coding %.40q", value)}
			}
		}
	}
	switch {
	case hosts > 1:
		return bad("more than one Host")
	case hosts == 0 && version == 1:
		return bad("no Host")
	case lengths > 1 || codings > 1 || lengths > 0 && codings > 0:
		return bad("more than one length of the body")
	case codings > 0 && version == 0:
		return bad("Transfer-Encoding in HTTP/1.0")
	}
	return nil
}

// checkRequestLine wants exactly three words, and returns the minor version.
func checkRequestLine(line []byte) (minor int, err error) {
	method, rest, _ := bytes.Cut(line, []byte{' '})
	target, proto, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(method) == 0 || len(target) == 0 {
		return 0, bad("malformed request line")
	}
	for _, c := range target {
		if c <= ' ' || c == 0x7f {
			return 0, bad("control character in the request target")
		}
	}
	switch string(proto) {
	case "HTTP/1.1":
		return 1, nil
	case "HTTP/1.0":
		return 0, nil
	}
	return 0, &badRequest{status: http.StatusHTTPVersionNotSupported, why: fmt.Sprintf("protocol %.20q", proto)}
}

// checkValue refuses control characters, among them the bare CR that some
// parsers take for the end of a line.
func checkValue(v []byte) error {
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return bad("control character %#02x in a header field", c)
		}
	}
	return nil
}

// cutLine returns the first line without its end, and what follows.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil
	}
	line, rest = b[:i], b[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest
}

func fold(b []byte, lower string) bool {
	return len(b) == len(lower) && strings.EqualFold(string(b), lower)
}

// checkRequest checks what needs parsed values, and brings the target into
// origin form.
func checkRequest(r *http.Request) error {
	if r.Method == http.MethodConnect {
		return &badRequest{status: http.StatusMethodNotAllowed, why: "CONNECT is not supported"}
	}
	if !httpguts.ValidHostHeader(r.Host) || r.Host == "" && r.ProtoMinor > 0 {
		return bad("malformed Host %.40q", r.Host)
	}
	switch {
	case r.RequestURI[0] == '/', r.RequestURI == "*":
		return nil
	case r.URL.Host == "":
		return bad("malformed request target")
	}
	// Absolute form, as to a proxy: its authority is the Host (RFC 9112 3.2.2).
	_, path, _ := strings.Cut(r.RequestURI, "://")
	if i := strings.IndexAny(path, "/?"); i < 0 {
		path = "/"
	} else if path = path[i:]; path[0] == '?' {
		path = "/" + path
	}
	r.RequestURI = path
	return nil
}

// checkResponse refuses a response whose head could mean something else to the
// client than it did to ReadResponse.
func checkResponse(r *http.Response) error {
	if r.StatusCode < 100 || !httpguts.ValidHeaderFieldValue(r.Status) {
		return errors.New("malformed status line")
	}
	return checkFields(r.Header)
}

func checkFields(h http.Header) error {
	for k, vs := range h {
		if !httpguts.ValidHeaderFieldName(k) {
			return fmt.Errorf("malformed header field name %.40q", k)
		}
		for _, v := range vs {
			if !httpguts.ValidHeaderFieldValue(v) {
				return fmt.Errorf("control character in the header field %s", k)
			}
		}
	}
	return nil
}
