// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
)

// logs are the places where a session writes.
type logs struct {
	logger *slog.Logger
	level  *slog.LevelVar
	access io.Writer // nil: no records
	files  []*os.File
	usual  slog.Level // from settle on
}

// openLogs opens the log and the access records. Under exec standard error is
// CMD's as well, so what is written there without being asked for is only
// what an operator would act on.
func openLogs(o *ObserveConfig, stderr io.Writer) (*logs, error) {
	l := &logs{level: new(slog.LevelVar), usual: slog.LevelWarn}
	l.level.Set(slog.LevelError)
	out := stderr
	if o.LogFile != "" {
		f, err := l.open(o.LogFile)
		if err != nil {
			return nil, err
		}
		out = f
		l.usual = slog.LevelInfo
		l.settle()
	}
	if o.LogLevel != "" {
		if err := l.usual.UnmarshalText([]byte(o.LogLevel)); err != nil {
			return nil, err
		}
		l.settle()
	}
	opts := &slog.HandlerOptions{Level: l.level}
	switch {
	case o.LogFormat == "json":
		l.logger = slog.New(slog.NewJSONHandler(out, opts))
	case o.LogFile != "":
		l.logger = slog.New(slog.NewTextHandler(out, opts))
	default:
		l.logger = slog.New(&consoleHandler{out: out, level: l.level, mu: new(sync.Mutex)})
	}
	switch o.AccessLog {
	case "":
	case "-":
		l.access = stderr
	default:
		f, err := l.open(o.AccessLog)
		if err != nil {
			l.close()
			return nil, err
		}
		l.access = f
	}
	return l, nil
}

// settle begins to log at the usual level.
func (l *logs) settle() { l.level.Set(l.usual) }

func (l *logs) open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	l.files = append(l.files, f)
	return f, nil
}

func (l *logs) close() {
	for _, f := range l.files {
		_ = f.Close()
	}
}

// A consoleHandler writes records for people, in the form of this program's
// other messages: "nasp-tun: warning: istiod is away err=...".
type consoleHandler struct {
	out   io.Writer
	level slog.Leveler
	mu    *sync.Mutex
	attrs string // formatted already
	group string // prefix of the keys
}

func (h *consoleHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *consoleHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("nasp-tun: ")
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString("error: ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("warning: ")
	case r.Level < slog.LevelInfo:
		b.WriteString("debug: ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		writeAttr(&b, h.group, a)
		return true
	})
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.out, b.String())
	return err
}

func (h *consoleHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(h.attrs)
	for _, a := range attrs {
		writeAttr(&b, h.group, a)
	}
	next := *h
	next.attrs = b.String()
	return &next
}

func (h *consoleHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.group += name + "."
	return &next
}

func writeAttr(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		for _, inner := range v.Group() {
			writeAttr(b, prefix+a.Key+".", inner)
		}
		return
	}
	text := v.String()
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		text = strconv.Quote(text)
	}
	fmt.Fprintf(b, " %s%s=%s", prefix, a.Key, text)
}
