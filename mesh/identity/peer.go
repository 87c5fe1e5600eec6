// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxSessions bounds the TLS sessions kept for resumption, over all peers. A
// session is a few kilobytes with the peer's chain; the least used go first.
const maxSessions = 1024

// A Peer is the server end of a connection into the mesh.
type Peer struct {
	// SNI selects the service at the other end; it is in no certificate.
	SNI string
	// SANs says whether a URI or DNS name of the peer's certificate is one of
	// those expected. One is enough. nil: any identity of the mesh will do.
	SANs func(san string) bool
	ALPN []string
	// Key separates the TLS sessions of one destination from those of others,
	// as by cluster and endpoint. SANs are checked on resumption all the same.
	Key string
}

// suites12 are the suites for TLS 1.2, which Envoy offers in this order too.
// Those of TLS 1.3 are not for choosing.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
}

// newIdentity readies a certificate for use.
func newIdentity(cert *Certificate) *identity {
	return &identity{
		cert: cert,
		// Config.Certificates would be searched for one whose issuer the
		// server's list of CAs names, and if there is none Go sends no
		// certificate and says nothing. Envoy's list may name another root.
		present: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if err := cert.usable(time.Now()); err != nil {
				return nil, err
			}
			return &cert.TLS, nil
		},
		sessions: tls.NewLRUClientSessionCache(maxSessions),
	}
}

// Client returns the config of one connection to p, which shows the current
// certificate and accepts p alone. It is an error to have no certificate
// ([ErrNoIdentity]) or an expired one ([ErrExpired]): there is no connection
// then, rather than one without identity.
//
// The config is made anew for each call, at the cost of three small
// allocations: a cache of configs would have to know when the meaning of
// p.SANs changes, and a stale one would accept the wrong peer.
func (s *Store) Client(p Peer) (*tls.Config, error) {
	id := s.current.Load()
	if id == nil {
		if _, err := s.LastError(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoIdentity, err)
		}
		return nil, ErrNoIdentity
	}
	if err := id.cert.usable(time.Now()); err != nil {
		return nil, err
	}
	conn := &peerConn{roots: id.cert.Roots, sans: p.SANs, sessions: id.sessions, key: p.Key}
	return &tls.Config{
		ServerName:           p.SNI,
		NextProtos:           p.ALPN,
		GetClientCertificate: id.present,
		// The SNI is no name of the certificate, so the standard verification
		// cannot be used; peerConn.verify does all of it but the name.
		InsecureSkipVerify: true,
		VerifyConnection:   conn.verify,
		// Every sidecar speaks TLS 1.3, save in a mesh whose COMPLIANCE_POLICY
		// is fips-140-2, where Istio holds Envoy to 1.2. Curves are Go's own
		// choice: without the post-quantum one (costly, 0.5 ms) the meshes
		// whose policy is pqc, and recorded traffic, would be lost.
		MinVersion:                  tls.VersionTLS12,
		CipherSuites:                suites12,
		ClientSessionCache:          conn,
		DynamicRecordSizingDisabled: true,
	}, nil
}

// A peerConn is what one connection is checked against, and its view of the
// sessions. The sessions belong to one certificate, so that rotation drops
// them all.
type peerConn struct {
	roots    *x509.CertPool
	sans     func(string) bool
	sessions tls.ClientSessionCache
	key      string
}

// verify checks the peer of a new or resumed connection.
func (c *peerConn) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: peer showed none", ErrUntrusted)
	}
	if len(cs.PeerCertificates) > maxChain {
		return fmt.Errorf("%w: chain of %d", ErrUntrusted, len(cs.PeerCertificates))
	}
	if err := verifyChain(cs.PeerCertificates, c.roots, time.Now(), x509.ExtKeyUsageServerAuth); err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if c.sans == nil {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	for _, u := range leaf.URIs {
		if c.sans(u.String()) {
			return nil
		}
	}
	if slices.ContainsFunc(leaf.DNSNames, c.sans) {
		return nil
	}
	return fmt.Errorf("%w: peer is %s", ErrPeerIdentity, names(leaf))
}

// names returns who a certificate says it is, for an error.
func names(cert *x509.Certificate) string {
	const most = 4
	var all []string
	for _, u := range cert.URIs {
		all = append(all, u.String())
	}
	all = append(all, cert.DNSNames...)
	switch {
	case len(all) == 0:
		return "without a name"
	case len(all) > most:
		all = append(all[:most], fmt.Sprintf("and %d more", len(all)-most))
	}
	return strings.Join(all, ", ")
}

// Get implements [tls.ClientSessionCache].
func (c *peerConn) Get(name string) (*tls.ClientSessionState, bool) {
	return c.sessions.Get(c.key + "\x00" + name)
}

// Put implements [tls.ClientSessionCache].
func (c *peerConn) Put(name string, state *tls.ClientSessionState) {
	c.sessions.Put(c.key+"\x00"+name, state)
}
