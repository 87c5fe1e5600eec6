// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// helloOf lets crypto/tls read a ClientHello: the oracle.
func helloOf(b []byte) (*tls.ClientHelloInfo, error) {
	var got *tls.ClientHelloInfo
	stop := errors.New("seen")
	err := tls.Server(readOnly{bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		got = h
		return nil, stop
	}}).HandshakeContext(context.Background())
	if got != nil {
		return got, nil
	}
	return nil, err
}

type readOnly struct{ io.Reader }

func (readOnly) Write(b []byte) (int, error)      { return len(b), nil }
func (readOnly) Close() error                     { return nil }
func (readOnly) LocalAddr() net.Addr              { return nil }
func (readOnly) RemoteAddr() net.Addr             { return nil }
func (readOnly) SetDeadline(time.Time) error      { return nil }
func (readOnly) SetReadDeadline(time.Time) error  { return nil }
func (readOnly) SetWriteDeadline(time.Time) error { return nil }

// hello makes a real one.
func makeHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	c, s := net.Pipe()
	first := make(chan []byte, 1)
	go func() {
		b := make([]byte, 1<<16)
		n, _ := s.Read(b)
		s.Close()
		first <- b[:n]
	}()
	_ = tls.Client(c, cfg).HandshakeContext(t.Context()) // ends when s does
	return <-first
}

// inRecords cuts the handshake message of a one-record hello into records of n
// bytes.
func inRecords(hello []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(hello[recordHeader:], n) {
		out = append(out, hello[0], hello[1], hello[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestParseHello(t *testing.T) {
	long := strings.Repeat("long-name.", 20) + "example"
	for _, tt := range []struct {
		cfg  *tls.Config
		name string
	}{
		{&tls.Config{ServerName: "a.example"}, "a.example"},
		{&tls.Config{ServerName: "UPPER.Example"}, "upper.example"},
		{&tls.Config{ServerName: long, NextProtos: []string{"h2", "http/1.1"}}, long},
		{&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}}, ""},
		{&tls.Config{ServerName: "old.example", MaxVersion: tls.VersionTLS12}, "old.example"},
	} {
		hello := makeHello(t, tt.cfg)
		for _, size := range []int{1, 5, 100, 1 << 14} {
			b := inRecords(hello, size)
			for cut := range len(b) {
				if got, v := parseHello(b[:cut]); v != needMore {
					t.Fatalf("%s in records of %d, cut at %d of %d: %v, %v", tt.name, size, cut, len(b), got, v)
				}
			}
			got, v := parseHello(append(b, "trailing"...))
			if v != is || got.serverName != tt.name || !slices.Equal(got.protocols, tt.cfg.NextProtos) {
				t.Errorf("got %+v, %v; want %s, %v", got, v, tt.name, tt.cfg.NextProtos)
			}
		}
	}
}

func FuzzHello(f *testing.F) {
	hello := makeHello(f, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2", "http/1.1"}})
	f.Add(hello)
	f.Add(inRecords(hello, 40))
	f.Add(hello[:100])
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, v := parseHello(b)
		want, err := helloOf(b)
		if err != nil {
			return // crypto/tls is stricter, which is the server's business
		}
		name := strings.ToLower(strings.TrimSuffix(want.ServerName, "."))
		if v != is || got.serverName != name || !slices.Equal(got.protocols, want.SupportedProtos) {
			t.Errorf("got %+v, %v; crypto/tls has %q, %q", got, v, want.ServerName, want.SupportedProtos)
		}
	})
}

func FuzzRequestLine(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n", "\r\nPOST /a%20b HTTP/1.0\n", preface, "PRI * HTTP/3", "SSH-2.0-x\r\n", "PUT a b\r\n", "GET  HTTP/1.1\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, whole := parseRequestLine(b)
		// A verdict stands, whatever comes next; and no prefix is judged
		// otherwise than the whole.
		for cut := range len(b) {
			if _, v := parseRequestLine(b[:cut]); v != needMore && v != whole {
				t.Fatalf("%q is %d, its prefix %q is %d", b, whole, b[:cut], v)
			}
		}
	})
}
