// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"log/slog"
	"regexp"
	"testing"
)

// The log says when limits begin to refuse and when that has ended, with the
// count of both; not how it went on in between.
func TestPressureIsLoggedOnChange(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	var p pressure
	for _, refused := range []uint64{0, 0, 3, 5, 9, 9, 9, 10, 10} {
		p.report(log, Stats{TCP: TCPStats{RefusedFlows: refused - refused/2}, UDP: UDPStats{RefusedSessions: refused / 2}})
	}
	got := regexp.MustCompile(`level=(\w+) .*? refused=(\d+)`).FindAllStringSubmatch(out.String(), -1)
	want := [][2]string{{"WARN", "3"}, {"INFO", "9"}, {"WARN", "1"}, {"INFO", "1"}}
	if len(got) != len(want) {
		t.Fatalf("log:\n%s", out.String())
	}
	for i, w := range want {
		if got[i][1] != w[0] || got[i][2] != w[1] {
			t.Errorf("line %d: %s %s, want %v", i, got[i][1], got[i][2], w)
		}
	}
}
