// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Why there is no identity to show.
var (
	// ErrNoIdentity: no certificate has been signed yet.
	ErrNoIdentity = errors.New("no identity yet")
	// ErrExpired: the certificate is not valid now. It ran out and could not be
	// renewed, or the clock of this machine was set back.
	ErrExpired = errors.New("identity expired")
	// ErrBadCertificate: what the CA answered cannot be used.
	ErrBadCertificate = errors.New("bad answer of the certificate authority")
)

// Why a peer or the control plane was not accepted, or did not accept us.
var (
	// ErrUnreachable: no connection, or the other end does not speak TLS.
	ErrUnreachable = errors.New("unreachable")
	// ErrUntrusted: the certificate of the other end is not valid now, does
	// not lead to our roots, or (istiod) is for another name.
	ErrUntrusted = errors.New("certificate not trusted")
	// ErrPeerIdentity: the peer is of the mesh, but not who it should be.
	ErrPeerIdentity = errors.New("wrong peer identity")
	// ErrNoToken: the source of tokens has none that could be used, and there
	// is no valid certificate to use in its place.
	ErrNoToken = errors.New("no token")
	// ErrTokenRefused: the control plane does not accept our credential.
	ErrTokenRefused = errors.New("token refused")
	// ErrCertificateRefused: the control plane does not accept our certificate.
	ErrCertificateRefused = errors.New("certificate refused")
	// ErrForbidden: the control plane knows us and does not serve us, as when
	// the node states another namespace than the token.
	ErrForbidden = errors.New("forbidden")
)

// An Error is a failure on the channel to the control plane. It is both its
// Kind, one of the sentinels of this package, and its cause, for errors.Is.
type Error struct {
	Kind error
	Err  error
	Code codes.Code
}

// Error returns the kind and the cause.
func (e *Error) Error() string { return e.Kind.Error() + ": " + e.Err.Error() }

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

// GRPCStatus lets gRPC, and status.Code, see the code through the Error.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Error()) }
