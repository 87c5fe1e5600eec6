// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"time"
)

// clockSkew is how far istiod dates certificates back, so that a client whose
// clock is a little behind can use them at once. A client that takes
// NotBefore for the time of issue renews short certificates too early.
const clockSkew = 2 * time.Minute

// caLifetime is the life of the root and of the intermediate.
const caLifetime = 10 * 365 * 24 * time.Hour

// An authority signs for the mesh: a root, kept aside, and an intermediate
// that signs the leaves, so that clients must send and check a chain.
type authority struct {
	trustDomain  string
	root         *x509.Certificate
	intermediate *x509.Certificate
	key          *ecdsa.PrivateKey // of the intermediate
	pool         *x509.CertPool
}

// newAuthority makes fresh keys. They are P-256, since a mesh is made for
// each test and RSA keys would take a second.
func newAuthority(trustDomain string) (*authority, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	root, err := signCA(trustDomain, "Root CA", rootKey, nil, rootKey)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make intermediate key: %w", err)
	}
	intermediate, err := signCA(trustDomain, "Intermediate CA", key, root, rootKey)
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &authority{trustDomain: trustDomain, root: root, intermediate: intermediate, key: key, pool: pool}, nil
}

// signCA makes a CA certificate for key; a nil parent makes it a root.
func signCA(trustDomain, name string, key crypto.Signer, parent *x509.Certificate, signer crypto.Signer) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serialBits keeps serial numbers positive and within the 20 bytes of
// RFC 5280, 4.1.2.2.
const serialBits = 127

func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
}

// names are the subject alternative names of a leaf.
type names struct {
	uris []string
	dns  []string
	ips  []netip.Addr
}

// sign makes a leaf for a public key. It is good for both ends of a
// connection, as istiod's are.
func (a *authority) sign(pub crypto.PublicKey, n names, ttl time.Duration) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial,
		// istiod leaves the subject empty; XFCC shows it as Subject="".
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    n.dns,
	}
	for _, ip := range n.ips {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	}
	for _, s := range n.uris {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("name %q: %w", s, err)
		}
		t.URIs = append(t.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.intermediate, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// issue makes a key and its certificate with the chain below the root.
func (a *authority) issue(n names, ttl time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	leaf, err := a.sign(key.Public(), n, ttl)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{
		Certificate: [][]byte{leaf.Raw, a.intermediate.Raw},
		PrivateKey:  key,
		Leaf:        leaf,
	}, nil
}

// spiffe is the identity of a service account.
func (a *authority) spiffe(namespace, account string) string {
	return "spiffe://" + a.trustDomain + "/ns/" + namespace + "/sa/" + account
}

func certPEM(certs ...[]byte) []byte {
	var b bytes.Buffer
	for _, der := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return b.Bytes()
}

// A KeyPair is a certificate in the form that other servers, Envoy first, read
// from files.
type KeyPair struct {
	// Chain is the leaf and the intermediate, Key its PKCS#8 key, Roots the
	// trust bundle; all are PEM.
	Chain, Key, Roots []byte
}

func (a *authority) keyPair(c *tls.Certificate) (KeyPair, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return KeyPair{}, fmt.Errorf("marshal key: %w", err)
	}
	return KeyPair{
		Chain: certPEM(c.Certificate...),
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		Roots: certPEM(a.root.Raw),
	}, nil
}
