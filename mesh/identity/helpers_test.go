// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/test/bufconn"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

const (
	laptopID = "spiffe://cluster.local/ns/external/sa/test-http"
	echoID   = "spiffe://cluster.local/ns/testing/sa/default"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An authority signs real certificates. Its clock is the one of the test, so
// that it works in a synctest bubble.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate

	serial atomic.Int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t)}
	a.serial.Store(1)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{Organization: []string{"cluster.local"}},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func (a *authority) pem() []byte { return certPEM(a.cert.Raw) }

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// leaf signs pub for the URI or DNS name san, valid from and until these
// distances from now.
func (a *authority) leaf(pub crypto.PublicKey, san string, from, until time.Duration) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial.Add(1)),
		NotBefore:    time.Now().Add(from),
		NotAfter:     time.Now().Add(until),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if u, err := url.Parse(san); err == nil && u.Scheme != "" {
		template.URIs = []*url.URL{u}
	} else if san != "" {
		template.DNSNames = []string{san}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		a.t.Error(err)
	}
	return der
}

// pair is a certificate for a server or client, valid around now.
func (a *authority) pair(san string, from, until time.Duration) tls.Certificate {
	key := newKey(a.t)
	return tls.Certificate{Certificate: [][]byte{a.leaf(key.Public(), san, from, until)}, PrivateKey: key}
}

// sign answers a request as a CA does, for the identity id.
func (a *authority) sign(csr []byte, id string, ttl time.Duration) (chain, roots [][]byte, err error) {
	block, _ := pem.Decode(csr)
	if block == nil {
		return nil, nil, errors.New("no PEM request")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, nil, err
	}
	der := a.leaf(r.PublicKey, id, -2*time.Minute, ttl)
	return [][]byte{certPEM(der)}, [][]byte{a.pem()}, nil
}

// A fakeCA is an identity.CA whose answers a test can change.
type fakeCA struct {
	*authority
	mu    sync.Mutex
	err   error
	calls int
}

func (f *fakeCA) Sign(_ context.Context, csr []byte, ttl time.Duration) (chain, roots [][]byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.err != nil {
		return nil, nil, f.err
	}
	return f.sign(csr, laptopID, ttl)
}

func (f *fakeCA) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeCA) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// enrolled returns a store that has a certificate of a, and runs until the
// test ends.
func enrolled(t testing.TB, a *authority) *identity.Store {
	t.Helper()
	s, err := identity.New(identity.Config{CA: &fakeCA{authority: a}})
	must(t, err)
	run(t, s.Run)
	<-s.Ready()
	return s
}

// run runs f until the test ends, and waits for it.
func run(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- f(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// pipe returns two ends of a buffered connection in memory. It may be called
// by a channel that outlives its test by a moment, and so knows no test.
func pipe() (client, server net.Conn, err error) {
	l := bufconn.Listen(64 << 10)
	defer l.Close()
	var g errgroup.Group
	g.Go(func() (err error) {
		server, err = l.Accept()
		return err
	})
	client, err = l.Dial()
	return client, server, errors.Join(err, g.Wait())
}

// A logRecorder keeps what is logged at a level, by message.
type logRecorder struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logRecorder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logRecorder) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.buf.Bytes(), []byte(s))
}

func (l *logRecorder) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// elapse lets fake time pass, and what is due in it happen. It is for
// synctest bubbles only.
func elapse(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func is(want string) func(string) bool { return func(san string) bool { return san == want } }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
