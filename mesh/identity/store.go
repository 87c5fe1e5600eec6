// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// DefaultTTL is what istiod gives when nothing is asked for.
	DefaultTTL = 24 * time.Hour
	// signTimeout bounds one request to the CA, the connection included.
	signTimeout = 15 * time.Second
	// A failed request is repeated soon, as Istio's agent does (100 ms to
	// 1.6 s), and then ever more slowly, but for ever: a laptop that comes
	// back to its network must get well by itself.
	fastRetries  = 5
	fastRetryMin = 100 * time.Millisecond
	slowRetryMin = 5 * time.Second
	slowRetryMax = time.Minute
	// renewMin bounds the rate at which a CA is asked that gives certificates
	// of no life to speak of.
	renewMin = 500 * time.Millisecond
	// clockStep is how often the wall clock is looked at while waiting. Timers
	// stand still while a machine sleeps, and certificates age.
	clockStep = 30 * time.Second
)

// A Config is what a [Store] needs.
type Config struct {
	CA CA
	// TTL is the life to ask for. Default: [DefaultTTL]. The CA may give less.
	TTL time.Duration
	// ID is the SPIFFE ID to put into requests, for a CA that compares it with
	// the credential. istiod does not look at it. Default: none.
	ID string
	// OnChange, if not nil, is called after each new certificate came into
	// force, from the goroutine of Run.
	OnChange func(*Certificate)
	// Logger hears of new certificates and of trouble. Default: none.
	Logger *slog.Logger
}

// A Store keeps a valid certificate. Create it with [New]; all methods are
// safe for concurrent use.
type Store struct {
	// Set by New, then read-only.
	ca       CA
	ttl      time.Duration
	id       *url.URL
	onChange func(*Certificate)
	log      *slog.Logger
	ready    chan struct{} // closed by Run, at the first certificate

	current atomic.Pointer[identity]

	mu        sync.Mutex // guards the following
	lastErr   error
	lastErrAt time.Time

	// Owned by Run.
	failures   int
	saidFailed codes.Code // of the failure logged last, OK if none
	saidExpiry bool
}

// An identity is a certificate in force, with the TLS sessions that were made
// by it. Sessions die with their certificate: one that was resumed would keep
// the old one alive at the peer.
type identity struct {
	cert     *Certificate
	present  func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	sessions tls.ClientSessionCache
}

// New returns a Store. It starts nothing; see [Store.Run].
func New(cfg Config) (*Store, error) {
	if cfg.CA == nil {
		return nil, errors.New("identity: no certificate authority")
	}
	s := &Store{
		ca:       cfg.CA,
		ttl:      cfg.TTL,
		onChange: cfg.OnChange,
		log:      cfg.Logger,
		ready:    make(chan struct{}),
	}
	if s.ttl == 0 {
		s.ttl = DefaultTTL
	}
	if s.ttl < time.Second {
		return nil, fmt.Errorf("identity: life of %v: want a second or more", s.ttl)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.ID != "" {
		id, err := url.Parse(cfg.ID)
		if err != nil || id.Scheme != "spiffe" || id.Host == "" {
			return nil, fmt.Errorf("identity: %q is no SPIFFE ID", cfg.ID)
		}
		s.id = id
	}
	return s, nil
}

// Ready is closed when there is a certificate for the first time.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Current returns the certificate in force, nil before the first. It may have
// expired.
func (s *Store) Current() *Certificate {
	if id := s.current.Load(); id != nil {
		return id.cert
	}
	return nil
}

// ClientCertificate returns the certificate to show to a server, nil if there
// is none that is valid now.
func (s *Store) ClientCertificate() *tls.Certificate {
	if c := s.Current(); c != nil && c.Valid(time.Now()) {
		return &c.TLS
	}
	return nil
}

// LastError returns when and why the last request for a certificate failed;
// nil if none has since the last certificate came.
func (s *Store) LastError() (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastErrAt, s.lastErr
}

// Run gets a certificate and renews it until ctx is done, then returns nil.
// It must be called once.
func (s *Store) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		var next time.Time
		switch cert, err := s.request(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			next = now().Add(s.failed(err))
		default:
			next = s.install(cert)
		}
		s.sleepUntil(ctx, next)
	}
	return nil
}

// request has the CA sign a new key.
func (s *Store) request(ctx context.Context) (*Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	key, csr, err := newRequest(s.id)
	if err != nil {
		return nil, err
	}
	chain, roots, err := s.ca.Sign(ctx, csr, s.ttl)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return newCertificate(key, chain, roots, now())
}

// install puts a certificate in force and returns when to renew it.
func (s *Store) install(cert *Certificate) time.Time {
	first := s.current.Load() == nil
	s.current.Store(newIdentity(cert))
	s.mu.Lock()
	s.lastErr = nil
	s.mu.Unlock()
	s.failures, s.saidFailed, s.saidExpiry = 0, codes.OK, false
	renew := renewAt(now(), cert.NotAfter)
	s.log.Info("certificate issued", "id", cert.ID, "serial", cert.Serial,
		"not_after", cert.NotAfter, "renew_at", renew)
	if first {
		close(s.ready)
	}
	if s.onChange != nil {
		s.onChange(cert)
	}
	return renew
}

// failed notes a failure and returns the delay before the next attempt.
func (s *Store) failed(err error) time.Duration {
	s.mu.Lock()
	s.lastErr, s.lastErrAt = err, now()
	s.mu.Unlock()
	s.failures++
	// Said when it begins and when its nature changes, not at each attempt.
	if code := status.Code(err); code != s.saidFailed {
		s.saidFailed = code
		s.log.Warn("no new certificate, trying on", "err", err, "attempts", s.failures)
	}
	if c := s.Current(); c != nil && !s.saidExpiry && !c.Valid(now()) {
		s.saidExpiry = true
		s.log.Error("certificate expired, connections into the mesh are refused",
			"id", c.ID, "not_after", c.NotAfter, "err", err)
	}
	return retryDelay(s.failures, err)
}

// sleepUntil waits until the wall clock shows t, or ctx is done.
func (s *Store) sleepUntil(ctx context.Context, t time.Time) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		left := t.Sub(now())
		if left <= 0 {
			return
		}
		timer.Reset(min(left, clockStep))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// now returns the wall clock alone: without its monotonic part, a time is
// compared as the calendar has it, also across a sleep of the machine.
func now() time.Time { return time.Now().Round(0) }

// renewAt returns when a certificate issued now is renewed: at half of what
// is left of its life, give or take a hundredth, as Istio's agent does, so
// that machines enrolled together do not come together for ever.
func renewAt(now, notAfter time.Time) time.Time {
	life := float64(notAfter.Sub(now))
	return now.Add(max(renewMin, time.Duration(life*(0.49+0.02*rand.Float64()))))
}

// retryDelay returns the delay after the n-th failure in a row, n from 1.
func retryDelay(n int, err error) time.Duration {
	var d time.Duration
	if n <= fastRetries && transient(err) {
		d = fastRetryMin << (n - 1)
	} else {
		d = slowRetryMin << min(max(n-fastRetries-1, 0), 10)
		d = min(d, slowRetryMax)
	}
	return d - rand.N(d/4)
}

// transient reports whether an error may pass by itself within seconds. A
// refused token does not, and asking again at once would only fill the log of
// the control plane.
func transient(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented:
		return false
	}
	return !errors.Is(err, ErrBadCertificate)
}
