// SPDX-License-Identifier: Apache-2.0

package proxy

import "bytes"

// preface opens every HTTP/2 connection (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// The application protocols that Envoy's HTTP inspector names.
const (
	http10 = "http/1.0"
	http11 = "http/1.1"
	h2c    = "h2c"
)

// methods are those that Envoy's parser takes for HTTP. They also keep text
// protocols apart, whose commands look like a method of their own.
var methods = func() map[string]bool {
	m := map[string]bool{}
	for _, s := range []string{
		"ACL", "BIND", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LINK", "LOCK", "MERGE",
		"MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "MSEARCH", "NOTIFY", "OPTIONS", "PATCH", "POST",
		"PROPFIND", "PROPPATCH", "PURGE", "PUT", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE",
		"TRACE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
	} {
		m[s] = true
	}
	return m
}()

const maxMethod = len("UNSUBSCRIBE")

// parseRequestLine tells whether a connection begins with HTTP, and which.
func parseRequestLine(b []byte) (protocol string, v verdict) {
	if v := startsWith(b, preface[:len("PRI * HTTP/2")]); v != isNot {
		return h2c, v
	}
	b = bytes.TrimLeft(b, "\r\n") // empty lines before a request are allowed
	if len(b) == 0 {
		return "", needMore
	}
	method, rest, complete := bytes.Cut(b, []byte{' '})
	if !complete {
		if couldBeMethod(method) {
			return "", needMore
		}
		return "", isNot
	}
	if !methods[string(method)] {
		return "", isNot
	}
	line, _, complete := bytes.Cut(rest, []byte{'\n'})
	if !complete {
		if hasControl(bytes.TrimSuffix(rest, []byte{'\r'})) {
			return "", isNot
		}
		return "", needMore
	}
	line = bytes.TrimSuffix(line, []byte{'\r'})
	at := bytes.LastIndexByte(line, ' ')
	if at < 1 || hasControl(line) {
		return "", isNot
	}
	switch string(line[at+1:]) {
	case "HTTP/1.1":
		return http11, is
	case "HTTP/1.0":
		return http10, is
	}
	return "", isNot
}

// startsWith compares b with what it may begin with.
func startsWith(b []byte, want string) verdict {
	switch {
	case len(b) >= len(want):
		if string(b[:len(want)]) == want {
			return is
		}
	case want[:len(b)] == string(b):
		return needMore
	}
	return isNot
}

// couldBeMethod reports whether some method begins with b.
func couldBeMethod(b []byte) bool {
	if len(b) > maxMethod {
		return false
	}
	for m := range methods {
		if startsWith(b, m) == needMore || m == string(b) {
			return true
		}
	}
	return false
}

func hasControl(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return true
		}
	}
	return false
}
