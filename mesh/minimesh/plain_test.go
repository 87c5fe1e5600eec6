// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestApplicationTellsWhatItSawAndAddsNothing(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://echo.testing/a?b=c", nil)
	r.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://td/ns/a/sa/b")
	rw := httptest.NewRecorder()
	NewApplication("echo-v1").Handler(8080).ServeHTTP(rw, r)
	got := rw.Body.String()
	for _, want := range []string{
		"Hostname: echo-v1\n", "\tmethod=GET\n", "\trequest_uri=http://echo.testing:8080/a?b=c\n",
		"\tx-forwarded-client-cert=URI=spiffe://td/ns/a/sa/b\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "x-request-id") {
		t.Errorf("a header that nobody sent in\n%s", got)
	}
}

func TestApplicationReturnsBytesAndTheEnd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := ln.Accept(); err == nil {
			NewApplication("echo-v1").ServeTCP(c)
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "name 0\n")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "name 0\n" {
		t.Errorf("got %q, %v", got, err)
	}
	c.Close()
	<-done
}
