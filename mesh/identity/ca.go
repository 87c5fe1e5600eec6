// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securitypb "istio.io/api/security/v1alpha1"
)

// A CA signs certificate requests.
type CA interface {
	// Sign returns the certificate for a PEM request, leaf first, and the
	// roots to trust. Each element is PEM and may hold several certificates.
	Sign(ctx context.Context, csr []byte, ttl time.Duration) (chain, roots [][]byte, err error)
}

// IstioCA is the CA of istiod, and of those that speak its protocol.
type IstioCA struct {
	client securitypb.IstioCertificateServiceClient
}

// NewIstioCA returns the CA behind a channel that authenticates, as one made
// by [Dial] does.
func NewIstioCA(conn grpc.ClientConnInterface) *IstioCA {
	return &IstioCA{client: securitypb.NewIstioCertificateServiceClient(conn)}
}

var _ CA = (*IstioCA)(nil)

// Sign implements [CA]. The last element of istiod's answer is the bundle of
// roots; the certificate is in those before it.
//
// istiod refuses a life that is longer than its MAX_WORKLOAD_CERT_TTL and does
// not say how long that is, except in prose. It is then asked for what it
// gives by default.
func (c *IstioCA) Sign(ctx context.Context, csr []byte, ttl time.Duration) (chain, roots [][]byte, err error) {
	req := &securitypb.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(ttl / time.Second)}
	r, err := c.client.CreateCertificate(ctx, req)
	if status.Code(err) == codes.InvalidArgument && req.GetValidityDuration() > 0 {
		req.ValidityDuration = 0
		again, errAgain := c.client.CreateCertificate(ctx, req)
		if errAgain == nil {
			r, err = again, nil
		}
	}
	if err != nil {
		return nil, nil, err
	}
	n := len(r.GetCertChain())
	if n < 2 {
		return nil, nil, fmt.Errorf("%w: %d elements, want a certificate and the roots", ErrBadCertificate, n)
	}
	for _, s := range r.GetCertChain() {
		chain = append(chain, []byte(s))
	}
	return chain[:n-1], chain[n-1:], nil
}

// newRequest makes a key and a request for a certificate of it. istiod ignores
// the name in a request; other CAs of this protocol want to see it.
func newRequest(id *url.URL) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	var template x509.CertificateRequest
	if id != nil {
		template.URIs = []*url.URL{id}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
