// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConsoleSpeaksAsTheProgramDoes(t *testing.T) {
	var b strings.Builder
	l, err := openLogs(&ObserveConfig{LogLevel: "debug", LogFormat: "text"}, &b)
	if err != nil {
		t.Fatal(err)
	}
	log := l.logger.With("component", "xds").WithGroup("peer")
	log.Warn("control plane away", "err", errors.New("no route"), "n", 2)
	log.Error("lost", slog.Group("at", "port", 80), "empty", "")
	log.Info("joined")
	log.Debug("seen", "line", "a\nb")
	want := `nasp-tun: warning: control plane away component=xds peer.err="no route" peer.n=2
nasp-tun: error: lost component=xds peer.at.port=80 peer.empty=""
nasp-tun: joined component=xds
nasp-tun: debug: seen component=xds peer.line="a\nb"
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// What was not asked for is little, and before CMD starts it is less.
func TestLogLevels(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	for _, tt := range []struct {
		name         string
		cfg          ObserveConfig
		start, usual slog.Level
	}{
		{"nothing said", ObserveConfig{}, slog.LevelError, slog.LevelWarn},
		{"a level", ObserveConfig{LogLevel: "info"}, slog.LevelInfo, slog.LevelInfo},
		{"a file", ObserveConfig{LogFile: file}, slog.LevelInfo, slog.LevelInfo},
		{"a file and a level", ObserveConfig{LogFile: file, LogLevel: "debug"}, slog.LevelDebug, slog.LevelDebug},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := openLogs(&tt.cfg, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			if got := l.level.Level(); got != tt.start {
				t.Errorf("at the start: got %v, want %v", got, tt.start)
			}
			l.settle()
			if got := l.level.Level(); got != tt.usual {
				t.Errorf("later: got %v, want %v", got, tt.usual)
			}
		})
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the log is its owner's alone: %v, %v", st.Mode(), err)
	}
	if _, err := openLogs(&ObserveConfig{LogFile: "/nonexistent/log"}, t.Output()); err == nil {
		t.Error("a log that cannot be opened must be an error")
	}
}

func TestTerminalIsNotDrawnOn(t *testing.T) {
	var b strings.Builder
	tb := newTable(&b, "A")
	tb.row("x\x1b[2Jy\tz")
	tb.flush()
	if b.String() != "A\nx?[2Jy?z\n" {
		t.Errorf("got %q", b.String())
	}
}
