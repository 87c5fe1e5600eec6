// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestSecretDoesNotPrint(t *testing.T) {
	const value = "hunter2"
	e := Enrollment{Token: NewSecret(value + "\n"), AccessToken: NewSecret(value)}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", e, e.Token)
	}
	fmt.Fprintln(&out, &e, []Secret{e.Token}, map[string]Secret{"a": e.Token})
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "token", e.Token, "all", e)
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	for _, form := range []string{value, fmt.Sprintf("%x", value), base64.StdEncoding.EncodeToString([]byte(value))} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the secret shows in\n%s", out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Errorf("no sign of a secret in\n%s", out.String())
	}
	if e.Token.Reveal() != value {
		t.Errorf("revealed %q", e.Token.Reveal())
	}
	if s := (Secret{}).String(); s != "" {
		t.Errorf("no secret shows as %q", s)
	}
}

func TestLife(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tests := []struct {
		name            string
		token           Secret
		issued, expires time.Time
	}{
		{"a JWT", token(now, now.Add(time.Hour), ""), now, now.Add(time.Hour)},
		{"opaque", NewSecret("abc"), time.Time{}, time.Time{}},
		{"not base64", NewSecret("a.*.c"), time.Time{}, time.Time{}},
		{"not JSON", NewSecret("a.YQ.c"), time.Time{}, time.Time{}},
		{"far future", token(now, time.Unix(1<<60, 0), ""), now, time.Time{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			issued, expiry := tt.token.Life()
			if !issued.Equal(tt.issued) || !expiry.Equal(tt.expires) {
				t.Errorf("lives from %v to %v, want %v to %v", issued, expiry, tt.issued, tt.expires)
			}
		})
	}
}
