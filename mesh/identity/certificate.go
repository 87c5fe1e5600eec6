// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"
)

const (
	// maxChain bounds the certificates below a root; Envoy's default depth of
	// verification is 100, real meshes have two or three.
	maxChain = 16
	// maxRoots bounds the bundle; a mesh of many clusters has one or two each.
	maxRoots = 1024
)

// A Certificate is an identity with what it trusts. It is never changed.
type Certificate struct {
	TLS         tls.Certificate // with Leaf set
	ID          string          // spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT
	TrustDomain string
	Serial      string // hexadecimal
	NotBefore   time.Time
	NotAfter    time.Time
	Roots       *x509.CertPool
	RootsPEM    []byte
}

// Valid reports whether the certificate can be used at t.
func (c *Certificate) Valid(t time.Time) bool {
	return !t.Before(c.NotBefore) && !t.After(c.NotAfter)
}

// usable returns ErrExpired if the certificate cannot be used at t.
func (c *Certificate) usable(t time.Time) error {
	if c.Valid(t) {
		return nil
	}
	return fmt.Errorf("%w: it is valid from %s until %s", ErrExpired,
		c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
}

// newCertificate makes a Certificate of what a CA answered for a request with
// this key, and checks that it is one: the leaf is for our key, names a SPIFFE
// ID, is valid now and leads to the roots that came with it.
func newCertificate(key crypto.Signer, chain, roots [][]byte, now time.Time) (*Certificate, error) {
	certs, err := parsePEM(chain, maxChain)
	if err != nil {
		return nil, fmt.Errorf("%w: chain: %w", ErrBadCertificate, err)
	}
	anchors, err := parsePEM(roots, maxRoots)
	if err != nil {
		return nil, fmt.Errorf("%w: roots: %w", ErrBadCertificate, err)
	}
	leaf := certs[0]
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%w: certificate is for another key", ErrBadCertificate)
	}
	id := spiffeID(leaf)
	if id == nil {
		return nil, fmt.Errorf("%w: certificate without a SPIFFE ID", ErrBadCertificate)
	}
	c := &Certificate{
		TLS:         tls.Certificate{PrivateKey: key, Leaf: leaf},
		ID:          id.String(),
		TrustDomain: id.Host,
		Serial:      fmt.Sprintf("%x", leaf.SerialNumber),
		NotBefore:   leaf.NotBefore,
		NotAfter:    leaf.NotAfter,
		Roots:       x509.NewCertPool(),
	}
	for _, r := range anchors {
		c.Roots.AddCert(r)
		c.RootsPEM = append(c.RootsPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	for _, cert := range certs {
		c.TLS.Certificate = append(c.TLS.Certificate, cert.Raw)
	}
	// Not the usage: what the CA lets us be is for the peers to judge.
	if err := verifyChain(certs, c.Roots, now, x509.ExtKeyUsageAny); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	return c, nil
}

// verifyChain checks that certs, leaf first, lead to roots at the time now.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, now time.Time, usage x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	return err
}

// parsePEM returns the certificates of all elements in order. Each element
// may hold several; anything that is not a certificate is an error, as is
// having none or more than limit.
func parsePEM(elements [][]byte, limit int) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, rest := range elements {
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("unexpected PEM block %.40q", block.Type)
			}
			if len(certs) == limit {
				return nil, fmt.Errorf("more than %d certificates", limit)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			certs = append(certs, cert)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}

// spiffeID returns the SPIFFE ID of a certificate, nil if it has none.
func spiffeID(cert *x509.Certificate) *url.URL {
	for _, u := range cert.URIs {
		if u.Scheme == "spiffe" && u.Host != "" {
			return u
		}
	}
	return nil
}

// PeerID returns the SPIFFE ID at the other end of a connection, "" if it
// showed none. It is proven only where a config of [Store.Client] made the
// connection.
func PeerID(cs *tls.ConnectionState) string {
	if len(cs.PeerCertificates) > 0 {
		if id := spiffeID(cs.PeerCertificates[0]); id != nil {
			return id.String()
		}
	}
	return ""
}
