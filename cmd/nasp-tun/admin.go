// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"
)

// An admin answers questions about a session, over HTTP on the session's
// socket. Each function returns what is encoded as JSON.
type admin struct {
	status   func() any
	services func(pattern string) (any, error)
	explain  func(ctx context.Context, target string) (any, error)
	dump     func() any
	level    *slog.LevelVar
	log      *slog.Logger
}

// Limits of the local HTTP servers: a few requests by hand or by a scraper.
const (
	headerTimeout  = 5 * time.Second
	maxHeaderBytes = 16 << 10
	maxLevelBytes  = 64
)

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.status(), nil) })
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, r *http.Request) {
		v, err := a.services(r.FormValue("pattern"))
		reply(w, v, err)
	})
	mux.HandleFunc("GET /explain", func(w http.ResponseWriter, r *http.Request) {
		v, err := a.explain(r.Context(), r.FormValue("target"))
		reply(w, v, err)
	})
	mux.HandleFunc("GET /config_dump", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.dump(), nil) })
	mux.HandleFunc("GET /loglevel", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.ToLower(a.level.Level().String()))
	})
	mux.HandleFunc("PUT /loglevel", a.setLevel)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func (a *admin) setLevel(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLevelBytes))
	if err == nil {
		err = a.level.UnmarshalText([]byte(strings.TrimSpace(string(text))))
	}
	if err != nil {
		http.Error(w, "loglevel: must be debug, info, warn or error", http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, errNotFound) {
			code = http.StatusNotFound
		}
		http.Error(w, err.Error(), code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = writeJSON(w, v) // the client has gone
}

// serve answers on l until ctx ends.
func (a *admin) serve(ctx context.Context, l net.Listener) error {
	own := &ownerListener{Listener: l, owner: uint32(os.Geteuid()), uid: peerUID, log: a.log}
	return serveHTTP(ctx, own, a.handler(), a.log)
}

// serveHTTP runs a small HTTP server until ctx ends. Requests still running
// then are cut: they are questions, whose answer no longer matters.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// An ownerListener accepts connections of the session's owner and of root. The
// folder's mode keeps others out already; this holds when the mode does not.
type ownerListener struct {
	net.Listener
	owner uint32
	uid   func(*net.UnixConn) (uint32, error)
	log   *slog.Logger
}

func (l *ownerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			_ = c.Close()
			return nil, fmt.Errorf("accept %T: not a unix socket", c)
		}
		uid, err := l.uid(u)
		if err == nil && (uid == l.owner || uid == 0) {
			return c, nil
		}
		l.log.Warn("refused a stranger at the session's socket", "uid", uid, "err", err)
		_ = c.Close()
	}
}

// errNotFound is an answer of the mesh that it does not know something.
var errNotFound = errors.New("not found")
