// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// unknownLife is taken for the life of tokens that do not tell theirs.
	unknownLife = time.Hour
	// minRefresh keeps a server that gives short tokens from being asked all
	// the time.
	minRefresh = 5 * time.Second
	// expiryMargin is how long before its end a token is no longer shown: a
	// call takes time and clocks differ.
	expiryMargin = 30 * time.Second
	// Waits after failures double from firstRetry to lastRetry.
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
)

// SourceConfig configures a Source.
type SourceConfig struct {
	// Fetch is Client.Fetch.
	Fetch func(ctx context.Context, token Secret) (Enrollment, error)
	// TokenFile holds the access token. It is read for each enrolment, and
	// replaced when the server gives a new one. Without it, Token is used and
	// renewed in memory.
	TokenFile string
	Token     Secret
	// NoAccessToken is for a Fetch that has other credentials, such as a
	// kubeconfig's; it gets no token.
	NoAccessToken bool
	Logger        *slog.Logger // nil: nobody is told
}

// A Source keeps an enrolment fresh for as long as the process lives: the
// token for istiod is fetched anew at half its life, and so is the access
// token, which the server renews. Its methods may be called from any goroutine.
type Source struct {
	cfg    SourceConfig
	logger *slog.Logger

	fetching chan struct{} // holds one value while somebody fetches

	mu      sync.Mutex // guards the rest
	current *Enrollment
	fetched time.Time
	// renewed is the access token in memory: of Token, or of a file that
	// could not be written. It stands until the file changes from replaced.
	renewed  Secret
	replaced Secret
	err      error // of the last fetch
	errSince time.Time
}

var (
	errNoFetch    = errors.New("enrolment source: no fetch function")
	errTokenPlace = errors.New("enrolment source: exactly one of a token file, a token or none at all must be chosen")
	errNotYet     = errors.New("not enrolled yet")
	errExpired    = errors.New("the token for istiod has expired")
)

// NewSource checks a configuration.
func NewSource(cfg SourceConfig) (*Source, error) {
	if cfg.Fetch == nil {
		return nil, errNoFetch
	}
	if n := count(cfg.TokenFile != "", !cfg.Token.IsZero(), cfg.NoAccessToken); n != 1 {
		return nil, errTokenPlace
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Source{cfg: cfg, logger: cfg.Logger, fetching: make(chan struct{}, 1)}, nil
}

// Enroll fetches the first enrolment. It does not try again by itself: whoever
// starts a program wants to hear what is wrong.
func (s *Source) Enroll(ctx context.Context) (Enrollment, error) {
	if err := s.refresh(ctx, func() bool { return true }); err != nil {
		return Enrollment{}, err
	}
	return s.Current()
}

// Current returns the last enrolment.
func (s *Source) Current() (Enrollment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return Enrollment{}, errNotYet
	}
	return *s.current, nil
}

// Token returns a token that istiod takes now. A token near its end, after the
// machine slept, is replaced first; one that is good is returned at once.
func (s *Source) Token(ctx context.Context) (string, error) {
	err := s.refresh(ctx, func() bool { return !s.usable(expiryMargin) })
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.current == nil:
		return "", errors.Join(errNotYet, err)
	case err != nil && !s.usableLocked(0):
		return "", fmt.Errorf("%w: %w", errExpired, err)
	}
	return s.current.Token.Reveal(), nil
}

// Roots returns the PEM certificates of the mesh's trust.
func (s *Source) Roots() ([]byte, error) {
	e, err := s.Current()
	return e.Roots, err
}

// LastError returns since when fetches fail and the error of the last one; nil
// after a good one.
func (s *Source) LastError() (since time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errSince, s.err
}

// Run keeps the enrolment fresh until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	retry := firstRetry
	for {
		wait := s.untilRefresh()
		if _, err := s.LastError(); err != nil {
			wait, retry = max(jitter(retry), retryAfterIn(err)), min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		// An error is kept for LastError and makes the next wait.
		_ = s.refresh(ctx, func() bool {
			_, err := s.LastError()
			return err != nil || s.untilRefresh() <= minRefresh
		})
	}
}

// refresh fetches if it is still needed once nobody else fetches.
func (s *Source) refresh(ctx context.Context, needed func() bool) error {
	if !needed() {
		return nil
	}
	select {
	case s.fetching <- struct{}{}:
		defer func() { <-s.fetching }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !needed() {
		return nil
	}
	access, err := s.accessToken()
	if err == nil {
		var e Enrollment
		if e, err = s.cfg.Fetch(ctx, access); err == nil {
			s.accept(e, access)
			return nil
		}
	}
	if ctx.Err() == nil {
		s.note(err)
	}
	return err
}

// note keeps an error and logs it when it is a new one.
func (s *Source) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.errSince = time.Now()
	}
	if s.err == nil || s.err.Error() != err.Error() {
		s.logger.Warn("enrolment not renewed", "err", err)
	}
	s.err = err
}

// accept takes an enrolment over.
func (s *Source) accept(e Enrollment, access Secret) {
	e.complete()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		s.logger.Info("enrolment renewed again", "after", time.Since(s.errSince))
	}
	s.err, s.errSince = nil, time.Time{}
	s.fetched = time.Now()
	if !e.AccessToken.IsZero() && e.AccessToken != access && pastHalf(access, s.fetched) {
		s.keepAccess(e.AccessToken, access)
	}
	s.current = &e
}

// keepAccess stores a new access token; s.mu is held.
func (s *Source) keepAccess(token, old Secret) {
	if s.cfg.TokenFile != "" {
		err := writeToken(s.cfg.TokenFile, token)
		if err == nil {
			s.renewed, s.replaced = Secret{}, Secret{}
			return
		}
		s.logger.Warn("renewed access token is kept in memory only", "err", err)
		if s.replaced.IsZero() {
			s.replaced = old
		}
	}
	s.renewed = token
}

// accessToken returns the token to show: the one in the file, unless it is the
// one that a newer one in memory replaces.
func (s *Source) accessToken() (Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.TokenFile == "" {
		if s.renewed.IsZero() {
			return s.cfg.Token, nil
		}
		return s.renewed, nil
	}
	t, err := ReadToken(s.cfg.TokenFile)
	if !s.renewed.IsZero() && (err != nil || t == s.replaced) {
		return s.renewed, nil
	}
	return t, err
}

// usable reports whether there is a token that has more than margin left.
func (s *Source) usable(margin time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usableLocked(margin)
}

func (s *Source) usableLocked(margin time.Duration) bool {
	if s.current == nil {
		return false
	}
	return time.Until(s.expiry()) > margin
}

// expiry is when the current token for istiod ends; s.mu is held.
func (s *Source) expiry() time.Time {
	if s.current.TokenExpiry.IsZero() {
		return s.fetched.Add(unknownLife)
	}
	return s.current.TokenExpiry
}

// untilRefresh is how long the enrolment is left alone: until half of the life
// that the token for istiod had when it came, and until half of the life of
// the access token.
func (s *Source) untilRefresh() time.Duration {
	access, accessErr := s.accessToken()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return 0
	}
	half := s.expiry().Sub(s.fetched) / 2
	at := s.fetched.Add(half)
	if accessErr == nil {
		// A server that does not renew is not asked more often for it.
		if h := halfLife(access); !h.IsZero() && h.Before(at) && h.After(s.fetched) {
			at = h
		}
	}
	return max(time.Until(at), minRefresh)
}

// halfLife is the middle of a token's life; zero: not known.
func halfLife(t Secret) time.Time {
	issued, expiry := t.Life()
	if issued.IsZero() || !issued.Before(expiry) {
		return time.Time{}
	}
	return issued.Add(expiry.Sub(issued) / 2)
}

// pastHalf reports whether a token is old enough to be replaced. Many
// processes may share a file; they do not all replace it each time.
func pastHalf(t Secret, now time.Time) bool {
	h := halfLife(t)
	return h.IsZero() || !now.Before(h)
}

// retryAfterIn is the wait that a server asked for. It is held to lastRetry,
// since a token may end before a longer one.
func retryAfterIn(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return min(e.RetryAfter, lastRetry)
	}
	return 0
}

// jitter spreads a wait over half of it to all of it, so that many clients of
// a server that was away do not come back together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}

func count(facts ...bool) int {
	n := 0
	for _, f := range facts {
		if f {
			n++
		}
	}
	return n
}
