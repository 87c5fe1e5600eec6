// SPDX-License-Identifier: Apache-2.0

// Package identity holds this machine's place in the mesh: a key that never
// leaves memory, the certificate that the mesh's CA signed for it, the roots
// that the mesh trusts, and the checks made of whoever is at the other end.
//
// # The certificate
//
// A [Store] makes a P-256 key and a certificate request, has a [CA] sign it,
// and does so again with a new key at half of the certificate's life. Who we
// are is learnt, not configured: the CA ignores the names in the request and
// signs what the credential proves, so the SPIFFE ID and the trust domain are
// read from the certificate that comes back. When renewal fails the old
// certificate serves until it expires, and after that nothing does:
// [Store.Client] then returns [ErrExpired], and no connection is made. Validity
// is judged by the wall clock, because a laptop sleeps and timers sleep along.
//
// # The peer
//
// An upstream is known by its SPIFFE ID, not by a host name: the server name
// sent to it (outbound_.80_._.echo.testing.svc.cluster.local) selects a
// service and is in no certificate. So the standard verification is off, and
// in its place VerifyConnection checks, on every connection and also on a
// resumed one, that the chain leads to the mesh's roots, that it is valid now,
// and that the identity is one of those that the control plane named.
//
// # istiod
//
// [Dial] makes the channel to the control plane, for both certificates and
// configuration. istiod, unlike a peer, is known by its DNS name, and its
// roots are read again at every handshake. We authenticate by token, and by
// our certificate where there is no usable token.
//
// gRPC tells a failed handshake as text inside an Unavailable. The channel
// keeps the reason itself, so that errors of both paths answer to errors.Is:
// [ErrUnreachable], [ErrUntrusted], [ErrTokenRefused] and the others.
package identity
