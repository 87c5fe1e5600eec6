// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// The reasons of an Error. They are words of telemetry's closed list.
const (
	ReasonNoEndpoint  = "no_endpoint"
	ReasonConnect     = "connect"
	ReasonTimeout     = "timeout"
	ReasonTLS         = "tls"
	ReasonTLSIdentity = "tls_identity"
	ReasonNoIdentity  = "no_identity"
	ReasonUnsupported = "transport_unsupported"
	ReasonOverload    = "overload"
	ReasonClientGone  = "client_gone"
	ReasonDrained     = "drained"
)

// An Error tells why there is no connection. No byte of the application has
// left when it is returned.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason that err carries, or otherwise.
func ReasonOf(err error, otherwise string) string {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Reason
	}
	return otherwise
}

// errConnectTimeout is the cause of a context that ended by the cluster's
// connect timeout, to tell it from the caller's own deadline.
var errConnectTimeout = errors.New("connect timeout")

// ErrTruncated is what a reader gets when the peer's connection ended without
// TLS's close_notify: whether the data is whole cannot be known (RFC 8446 6.1).
var ErrTruncated = fmt.Errorf("connection closed without close_notify: %w", io.ErrUnexpectedEOF)

// failed names the step and the target of a failure, and finds its reason.
func failed(ctx context.Context, t *Target, step, reason string, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errConnectTimeout):
		reason, err = ReasonTimeout, fmt.Errorf("no answer within %v", t.connectTimeout())
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		reason = ReasonTimeout
	case ctx.Err() != nil:
		reason, err = ReasonClientGone, context.Cause(ctx)
	}
	return &Error{Reason: reason, Err: fmt.Errorf("%s %s (%s): %w", step, t.Cluster.Name, t.Address(), err)}
}

// tlsReason tells a peer of the wrong identity from a handshake that failed
// otherwise.
func tlsReason(err error) string {
	if errors.Is(err, identity.ErrPeerIdentity) || errors.Is(err, identity.ErrUntrusted) {
		return ReasonTLSIdentity
	}
	return ReasonTLS
}

// IsAlert reports whether err is a TLS alert of the peer. Under TLS 1.3 a
// server refuses our certificate only after the client's handshake is over, so
// that the alert meets the first read.
//
// crypto/tls has a type for alerts under QUIC only; elsewhere it is this
// operation that tells one.
func IsAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
