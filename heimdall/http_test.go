// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server and returns its roots.
func serve(t *testing.T, h http.Handler) (srv *httptest.Server, roots func() ([]byte, error)) {
	t.Helper()
	srv = httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return srv, func() ([]byte, error) { return b, nil }
}

func fetch(t *testing.T, cfg ClientConfig, token string) (Enrollment, error) {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c.Fetch(t.Context(), NewSecret(token))
}

// Both ends are ours, and one or the other is nasp's.
func TestRoundTrip(t *testing.T) {
	h := Handler(func(_ context.Context, token string) (Enrollment, error) {
		if token != "access" {
			return Enrollment{}, fmt.Errorf("token %q: %w", token, ErrUnauthorized)
		}
		e := whole()
		e.InstanceIPs = nil
		return e, nil
	})
	srv, roots := serve(t, h)
	e, err := fetch(t, ClientConfig{URL: srv.URL, Roots: roots, Name: "lap", Version: "1"}, "access")
	if err != nil {
		t.Fatal(err)
	}
	want := whole()
	want.InstanceIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if d := cmp.Diff(want, e, secrets, cmp.Comparer(addrs)); d != "" {
		t.Errorf("enrolment (-want +got):\n%s", d)
	}

	// nasp's client does not say what it accepts and gets nasp's form.
	req := httptest.NewRequest(http.MethodPost, "/config", strings.NewReader(`{"PodName":"lap-1","Version":""}`))
	req.Header.Set("Authorization", "Bearer access")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if got := rec.Header().Get("Content-Type"); got != mediaJSON || !strings.Contains(rec.Body.String(), `"CAClientConfig"`) {
		t.Errorf("answer to nasp: %s %s", got, rec.Body)
	}
	if rec.Header().Get("Cache-Control") != "no-store" || rec.Header().Get("Vary") != "Accept" {
		t.Errorf("headers %v", rec.Header())
	}

	// nasp's server does not know our form.
	srv, roots = serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Write(golden(t, "nasp.json"))
	}))
	e, err = fetch(t, ClientConfig{URL: srv.URL + "/config", Roots: roots}, "access")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), e, secrets, cmp.Comparer(addrs)); d != "" {
		t.Errorf("enrolment at nasp (-want +got):\n%s", d)
	}
}

func TestHandlerRefusals(t *testing.T) {
	errs := map[string]error{
		"forbidden": ErrForbidden, "gone": fmt.Errorf("workload group %q: %w", "g", ErrNotFound),
		"often": ErrThrottled, "broken": errors.New("password of the database is hunter2"), "bad": ErrUnauthorized,
	}
	h := Handler(func(_ context.Context, token string) (Enrollment, error) {
		if token == "hollow" {
			return Enrollment{}, nil
		}
		return sample(), errs[token]
	})
	tests := []struct {
		name, method, path, auth, body string
		code                           int
		want, header                   string
	}{
		{name: "no token", code: 401, want: "authorization header is missing", header: "Www-Authenticate"},
		{name: "basic", auth: "Basic YQ==", code: 401, want: "incorrectly formatted"},
		{name: "two tokens", auth: "Bearer a b", code: 401, want: "incorrectly formatted"},
		{name: "huge token", auth: "Bearer " + strings.Repeat("a", maxHeaderToken+1), code: 401, want: "incorrectly formatted"},
		{name: "refused", auth: "Bearer bad", code: 401, want: ErrUnauthorized.Error(), header: "Www-Authenticate"},
		{name: "forbidden", auth: "Bearer forbidden", code: 403, want: ErrForbidden.Error()},
		{name: "no group", auth: "bearer gone", code: 404, want: `workload group \"g\"`},
		{name: "throttled", auth: "Bearer often", code: 429, want: ErrThrottled.Error(), header: "Retry-After"},
		{name: "internal", auth: "Bearer broken", code: 500, want: `{"error":"internal error"}`},
		{name: "incomplete", auth: "Bearer hollow", code: 500, want: `{"error":"internal error"}`},
		{name: "not JSON", auth: "Bearer x", body: "PodName=a", code: 400, want: "not a JSON object"},
		{name: "large", auth: "Bearer x", body: `{"PodName":"` + strings.Repeat("a", maxRequest) + `"}`, code: 413, want: "too large"},
		{name: "method", method: http.MethodGet, auth: "Bearer x", code: 405, want: "POST", header: "Allow"},
		{name: "path", path: "/other", auth: "Bearer x", code: 404, want: "no such path"},
		{name: "empty body", auth: "Bearer x", code: 200, want: "CAClientConfig"},
		{name: "probe", method: http.MethodGet, path: "/", code: 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			method, path := either(tt.method, http.MethodPost), either(tt.path, "/config")
			req := httptest.NewRequest(method, path, strings.NewReader(tt.body))
			if tt.auth != "" {
				req.Header.Set("Authorization", tt.auth)
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			if rec.Code != tt.code || !strings.Contains(rec.Body.String(), tt.want) {
				t.Errorf("%d %s, want %d %s", rec.Code, rec.Body, tt.code, tt.want)
			}
			if tt.header != "" && rec.Header().Get(tt.header) == "" {
				t.Errorf("no %s in %v", tt.header, rec.Header())
			}
			if tt.code >= 400 && !strings.HasPrefix(rec.Body.String(), `{"error":`) {
				t.Errorf("body %s", rec.Body)
			}
		})
	}
}

func TestWantsOwn(t *testing.T) {
	tests := []struct {
		accept []string
		want   bool
	}{
		{nil, false},
		{[]string{"*/*"}, false},
		{[]string{"application/json"}, false},
		{[]string{accept}, true},
		{[]string{"text/html", "Application/Vnd.Nasp-Tun.Enrollment.V1+json;q=0.1"}, true},
		{[]string{MediaType + ";q=0"}, false},
		{[]string{";;;,=" + MediaType}, false},
	}
	for _, tt := range tests {
		if got := wantsOwn(tt.accept); got != tt.want {
			t.Errorf("%q: %t, want %t", tt.accept, got, tt.want)
		}
	}
}

func TestClientURL(t *testing.T) {
	tests := []struct{ url, want string }{
		{"https://heimdall", ""},
		{"https://heimdall:16443/config", ""},
		{"http://127.0.0.1:8080", ""},
		{"http://[::1]:8080/config", ""},
		{"http://localhost/config", ""},
		{"http://heimdall/config", "only loopback"},
		{"http://127.0.0.1.example.com/", "only loopback"},
		{"ftp://heimdall", "https://"},
		{"heimdall:16443", "https://"},
		{"https://", "no host"},
		{"https://me:hunter2@heimdall/", "password"},
		{"https://me:hunter2@heimdall:port/", "invalid port"},
		{"", "https://"},
	}
	for _, tt := range tests {
		_, err := NewClient(ClientConfig{URL: tt.url})
		if tt.want == "" {
			if err != nil {
				t.Errorf("%q: %v", tt.url, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v, want %q", tt.url, err, tt.want)
		}
	}
}

// answer always says the same.
func answer(code int, media, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		w.WriteHeader(code)
		io.WriteString(w, body)
	})
}

func TestClientErrors(t *testing.T) {
	tests := []struct {
		name   string
		h      http.Handler
		cfg    func(*ClientConfig)
		token  string
		kind   error
		detail string
	}{
		{name: "401", h: answer(401, mediaJSON, `{"error":"who\u001b[31m\nare you"}`), kind: ErrUnauthorized, detail: "(401 Unauthorized): who [31m are you"},
		{name: "403", h: answer(403, mediaJSON, `{}`), kind: ErrForbidden},
		{name: "404", h: answer(404, "text/html", `<html>`), kind: ErrNotFound},
		{name: "429", h: answer(429, mediaJSON, ``), kind: ErrThrottled},
		{name: "500", h: answer(500, mediaJSON, `{"error":"internal error"}`), kind: ErrServer, detail: "internal error"},
		{name: "418", h: answer(418, mediaJSON, ``), kind: ErrServer, detail: "teapot"},
		{name: "redirect", h: http.RedirectHandler("https://elsewhere/", http.StatusTemporaryRedirect), kind: ErrServer, detail: "not taken there"},
		{name: "a login page", h: answer(200, "text/html", `<html>`), kind: ErrMalformed},
		{name: "endless", h: answer(200, mediaJSON, `"`+strings.Repeat("a", maxAnswer)+`"`), kind: ErrMalformed, detail: "too large"},
		{name: "cut off", h: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), kind: ErrUnreachable},
		{
			name: "slow", h: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			cfg: func(c *ClientConfig) { c.Timeout = time.Millisecond }, kind: ErrUnreachable, detail: "deadline",
		},
		{name: "stranger", h: answer(200, mediaJSON, `{}`), cfg: func(c *ClientConfig) { c.Roots = nil }, kind: ErrUntrusted},
		{name: "no roots", h: answer(200, mediaJSON, `{}`), cfg: func(c *ClientConfig) {
			c.Roots = func() ([]byte, error) { return []byte("garbage"), nil }
		}, kind: ErrUntrusted, detail: "no certificate"},
		{name: "another name", h: answer(200, mediaJSON, `{}`), cfg: func(c *ClientConfig) {
			addr := strings.TrimPrefix(c.URL, "https://")
			c.URL = "https://heimdall.internal"
			c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			}
		}, kind: ErrUntrusted, detail: "heimdall.internal"},
		{name: "nobody", h: answer(200, mediaJSON, `{}`), cfg: func(c *ClientConfig) {
			c.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }
		}, kind: ErrUnreachable, detail: "no route"},
		{name: "no token", h: answer(200, mediaJSON, `{}`), token: " \n", kind: ErrNoToken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv, roots := serve(t, tt.h)
			cfg := ClientConfig{URL: srv.URL, Roots: roots}
			if tt.cfg != nil {
				tt.cfg(&cfg)
			}
			_, err := fetch(t, cfg, either(tt.token, "s3cret"))
			if !errors.Is(err, tt.kind) || !strings.Contains(fmt.Sprint(err), tt.detail) {
				t.Errorf("error %v, want %v with %q", err, tt.kind, tt.detail)
			}
			if strings.Contains(fmt.Sprint(err), "s3cret") {
				t.Errorf("the token shows in %v", err)
			}
		})
	}
}

// A server without TLS in place of the real one is a stranger too.
func TestClientPlainServer(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, err := fetch(t, ClientConfig{URL: strings.Replace(srv.URL, "http:", "https:", 1)}, "a")
	if !errors.Is(err, ErrUntrusted) {
		t.Errorf("error %v, want %v", err, ErrUntrusted)
	}
}

func TestRetryAfter(t *testing.T) {
	srv, roots := serve(t, Handler(func(context.Context, string) (Enrollment, error) { return Enrollment{}, ErrThrottled }))
	_, err := fetch(t, ClientConfig{URL: srv.URL, Roots: roots}, "a")
	if got, want := retryAfterIn(err), 10*time.Second; got != want {
		t.Errorf("wait %v, want %v", got, want)
	}
	for value, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "-3": 0, "Wed, 21 Oct 2026 07:28:00 GMT": 0, "99999999": 0} {
		if got := retryAfterOf(http.Header{"Retry-After": {value}}); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestFetchCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, err := NewClient(ClientConfig{URL: "https://heimdall", Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fetch(ctx, NewSecret("a")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
}
