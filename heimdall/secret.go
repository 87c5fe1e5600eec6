// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// redacted is what a secret shows of itself.
const redacted = "[redacted]"

// A Secret is a string that does not print: whatever formats, logs or marshals
// it sees "[redacted]". Only Reveal gives it away, so that every use of the
// value can be found by that name.
type Secret struct{ value string }

// NewSecret wraps a value. White space around it is dropped, since secrets are
// read from files that end with a newline.
func NewSecret(value string) Secret { return Secret{strings.TrimSpace(value)} }

// Reveal returns the value.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.value == "" }

// String implements fmt.Stringer. An empty secret is no secret and shows as
// empty.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// Format implements fmt.Formatter: every verb gets what String returns.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler, and so marshalling to JSON
// and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Life reads when a token was issued and when it expires. Tokens of Kubernetes
// are JWTs; of others nothing is known. The signature is not looked at: a
// client cannot, and only its own timing depends on it.
func (s Secret) Life() (issued, expiry time.Time) {
	parts := strings.Split(s.value, ".")
	if len(parts) != 3 {
		return time.Time{}, time.Time{}
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, time.Time{}
	}
	// Numbers of a JWT may have fractions (RFC 7519, NumericDate).
	var c struct{ Iat, Exp float64 }
	if json.Unmarshal(body, &c) != nil {
		return time.Time{}, time.Time{}
	}
	return numericDate(c.Iat), numericDate(c.Exp)
}

// maxNumericDate is the last second of the year 9999; what lies beyond is
// garbage that would overflow.
const maxNumericDate = 253402300799

func numericDate(f float64) time.Time {
	if f <= 0 || f > maxNumericDate {
		return time.Time{}
	}
	return time.Unix(int64(f), 0)
}
