// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nasp-tun/nasp-tun/heimdall/server"
)

func TestReadiness(t *testing.T) {
	w := start(t, nil)
	w.api.Fault(func(*http.Request) int { return http.StatusServiceUnavailable })
	if code, text := w.get(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "not available") && !strings.Contains(text, "503") {
		t.Errorf("without an API: %d %s", code, text)
	}
	if code, _ := w.get(t, "/healthz"); code != http.StatusOK {
		t.Errorf("health %d", code)
	}
	w.api.Fault(nil)
	if code, text := w.get(t, "/readyz"); code != http.StatusOK {
		t.Errorf("ready: %d %s", code, text)
	}
	// Once it knows the mesh it stays: no other replica could do better.
	w.api.Fault(func(*http.Request) int { return http.StatusServiceUnavailable })
	if code, _ := w.get(t, "/readyz"); code != http.StatusOK {
		t.Errorf("API away: %d", code)
	}
}

// What is under way at the end is answered.
func TestDrain(t *testing.T) {
	w := start(t, nil)
	reached, proceed := make(chan struct{}), make(chan struct{})
	w.api.Fault(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, "tokenreviews") {
			close(reached)
			<-proceed
		}
		return 0
	})
	answered := make(chan error, 1)
	token := w.fresh()
	go func() {
		_, err := w.fetch(t, token)
		answered <- err
	}()
	<-reached
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	// The port is closed before the answer is sent.
	for {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(w.public, "https://"))
		if err != nil {
			break
		}
		c.Close()
	}
	close(proceed)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// The certificate is taken up when it changes, and a broken one is not.
func TestCertificateReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		chain, key := issue(t, 1)
		var failure error
		logs := &safeBuffer{}
		c := server.NewCertificate(func(context.Context) ([]byte, []byte, error) {
			mu.Lock()
			defer mu.Unlock()
			return chain, key, failure
		}, slog.New(slog.NewTextHandler(logs, nil)))
		if _, err := c.Get(nil); err == nil {
			t.Error("a certificate out of nothing")
		}
		if err := c.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		serial := func() string {
			t.Helper()
			time.Sleep(time.Minute) //rule:allow the bubble's clock
			p, err := c.Get(nil)
			if err != nil {
				t.Fatal(err)
			}
			return p.Leaf.SerialNumber.String()
		}
		set := func(a, b []byte, err error) {
			mu.Lock()
			defer mu.Unlock()
			chain, key, failure = a, b, err
		}
		second, secondKey := issue(t, 2)
		set(second, key, nil) // half written
		if got := serial(); got != "1" {
			t.Errorf("serial %s of half a pair", got)
		}
		set(second, secondKey, nil)
		if got := serial(); got != "2" {
			t.Errorf("serial %s after a change", got)
		}
		set(nil, nil, errors.New("no such file"))
		if got := serial(); got != "2" {
			t.Errorf("serial %s without a file", got)
		}
		if n := strings.Count(logs.String(), "no such file"); n != 1 {
			t.Errorf("told %d times in a minute", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNewChecks(t *testing.T) {
	for _, cfg := range []server.Config{{}, {Public: &net.TCPListener{}, Internal: &net.TCPListener{}}} {
		if _, err := server.New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	if got := fmt.Sprint(server.Files("gone", "gone")(t.Context())); !strings.Contains(got, "gone") {
		t.Errorf("files: %s", got)
	}
}
