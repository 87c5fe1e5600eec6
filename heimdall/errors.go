// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// The ways in which an enrolment fails. A client's errors wrap one of them,
// and a handler's callback returns one to choose the answer's status.
var (
	ErrUnauthorized = errors.New("the access token is not accepted")              // 401
	ErrForbidden    = errors.New("the access token does not permit this")         // 403
	ErrNotFound     = errors.New("no workload group or no Heimdall at this path") // 404
	ErrThrottled    = errors.New("asked too often")                               // 429
	ErrUnavailable  = errors.New("the server cannot tell now")                    // 503
	ErrServer       = errors.New("the server has an error")                       // 5xx and what is not foreseen
	ErrUntrusted    = errors.New("the server's certificate is not trusted")
	ErrUnreachable  = errors.New("the server cannot be reached")
	ErrMalformed    = errors.New("the answer is not an enrolment")
	ErrNoToken      = errors.New("no access token")
)

// An Error is a failed enrolment. It wraps one of the sentinel errors and the
// cause, if there is one.
type Error struct {
	URL    string
	Kind   error
	Status int    // of the answer; 0: none came
	Detail string // what the server says
	// RetryAfter is how long the server wants to be left alone; 0: no word.
	RetryAfter time.Duration
	Err        error
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "enrol at %s: %v", e.URL, e.Kind)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (%d %s)", e.Status, http.StatusText(e.Status))
	}
	if e.Detail != "" {
		fmt.Fprintf(&b, ": %s", e.Detail)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// statuses ties the sentinels to HTTP.
var statuses = []struct {
	code int
	kind error
}{
	{http.StatusUnauthorized, ErrUnauthorized},
	{http.StatusForbidden, ErrForbidden},
	{http.StatusNotFound, ErrNotFound},
	{http.StatusTooManyRequests, ErrThrottled},
	{http.StatusServiceUnavailable, ErrUnavailable},
}

// kindOf is the sentinel of a status that is not 200.
func kindOf(code int) error {
	for _, s := range statuses {
		if s.code == code {
			return s.kind
		}
	}
	return ErrServer
}

// transportKind tells a server that is not trusted from one that is not there.
func transportKind(err error) error {
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
		return ErrUntrusted
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch): // not TLS at all: nobody who could be trusted
		return ErrUntrusted
	}
	return ErrUnreachable
}

// maxDetail bounds what is shown of a server's words.
const maxDetail = 300

// printable makes one short line of what a server says, which ends up on a
// terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxDetail {
		return string(r[:maxDetail]) + "…"
	}
	return s
}
