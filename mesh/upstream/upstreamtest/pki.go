// SPDX-License-Identifier: Apache-2.0

package upstreamtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// ClientID is who the certificates of [Authority.Store] are for.
const ClientID = "spiffe://cluster.local/ns/external/sa/laptop"

// An Authority signs certificates of a mesh.
type Authority struct {
	t      testing.TB
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	serial atomic.Int64
}

// NewAuthority makes an authority with a root of its own.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, key: newKey(t)}
	a.serial.Store(1)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *Authority) leaf(pub crypto.PublicKey, id string, ttl time.Duration) ([]byte, error) {
	u, err := url.Parse(id)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial.Add(1)), URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return x509.CreateCertificate(rand.Reader, leaf, a.cert, pub, a.key)
}

// Sign implements identity.CA.
func (a *Authority) Sign(_ context.Context, csr []byte, ttl time.Duration) (chain, roots [][]byte, err error) {
	block, _ := pem.Decode(csr)
	if block == nil {
		return nil, nil, errors.New("no PEM request")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	der, err := a.leaf(r.PublicKey, ClientID, ttl)
	if err != nil {
		return nil, nil, err
	}
	encode := func(der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return [][]byte{encode(der)}, [][]byte{encode(a.cert.Raw)}, nil
}

// Request returns a certificate request, for Sign.
func (a *Authority) Request() []byte {
	a.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(a.t))
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// Store returns a store that holds a certificate, and runs until the test ends
// and renews it at half of ttl. 0 is a day.
func (a *Authority) Store(ttl time.Duration) *identity.Store {
	a.t.Helper()
	s, err := identity.New(identity.Config{CA: a, TTL: ttl})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			a.t.Errorf("identity: %v", err)
		}
	})
	a.t.Cleanup(func() { cancel(); wg.Wait() })
	<-s.Ready()
	return s
}

// Server returns the config of a workload of the mesh. Like a sidecar it wants
// a certificate, and does not mind a client that offers none of protos.
func (a *Authority) Server(id string, protos ...string) *tls.Config {
	a.t.Helper()
	key := newKey(a.t)
	der, err := a.leaf(key.Public(), id, 24*time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	base := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS12,
	}
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.GetConfigForClient = nil
		for _, p := range protos {
			if slices.Contains(h.SupportedProtos, p) {
				c.NextProtos = []string{p}
				break
			}
		}
		return c, nil
	}
	return base
}
