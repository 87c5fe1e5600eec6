// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/netstack/host"
)

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		code int
		text string
	}{
		{"nothing", nil, 0, ""},
		{"no class", errors.New("x"), exitFailure, "nasp-tun: x\n"},
		{
			"no session", fmt.Errorf("status: %w", &noSessionError{}), exitNoSession,
			"nasp-tun: status: no session runs\nnasp-tun: hint: start one: nasp-tun exec -- CMD\n",
		},
		{"CMD's own end", exitCode(7), 7, ""},
		{
			"a refusal of the host", &exitError{host.ExitStatus{Code: exitSetUp}, fmt.Errorf("exec: %w", &host.ExecError{
				Stage: "tun", Code: exitSetUp, Hint: "modprobe tun\nor sudo", Err: errors.New("no such device"),
			})}, exitSetUp,
			"nasp-tun: exec: tun: no such device\nnasp-tun: hint: modprobe tun\nnasp-tun: hint: or sudo\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if got := report(&b, tt.err).ShellCode(); got != tt.code {
				t.Errorf("got exit code %d, want %d", got, tt.code)
			}
			if b.String() != tt.text {
				t.Errorf("got %q, want %q", b.String(), tt.text)
			}
		})
	}
}
