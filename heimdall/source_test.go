// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeServer gives tokens that live for given times and knows which access
// tokens are good. It runs in a synctest bubble with one Source.
type fakeServer struct {
	tokenLife, accessLife time.Duration // accessLife 0: no renewal
	began                 time.Time

	mu    sync.Mutex
	down  error
	asked []Secret
}

func (f *fakeServer) setDown(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

// requests returns the access tokens that were shown, in order.
func (f *fakeServer) requests() []Secret {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (f *fakeServer) fetch(_ context.Context, access Secret) (Enrollment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, access)
	if f.down != nil {
		return Enrollment{}, f.down
	}
	if _, expiry := access.Life(); !expiry.IsZero() && time.Now().After(expiry) {
		return Enrollment{}, ErrUnauthorized
	}
	e := sample()
	now := time.Now()
	e.Token = token(now, now.Add(f.tokenLife), "istio")
	if f.accessLife > 0 {
		e.AccessToken = token(now, now.Add(f.accessLife), "access")
	}
	return e, nil
}

// running starts a source for the length of a test, in a bubble.
func running(t *testing.T, f *fakeServer, cfg SourceConfig) *Source {
	t.Helper()
	f.began = time.Now()
	cfg.Fetch = f.fetch
	s, err := NewSource(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func lastOf(s []Secret) Secret { return s[len(s)-1] }

// later lets time pass and the source act.
func later(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func usableFor(t *testing.T, s *Source) time.Duration {
	t.Helper()
	v, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, expiry := NewSecret(v).Life()
	return time.Until(expiry)
}

// nasp's laptop died after a day; this one outlives every token.
func TestSourceOutlivesItsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{tokenLife: time.Hour, accessLife: 24 * time.Hour}
		first := token(time.Now(), time.Now().Add(24*time.Hour), "first")
		s := running(t, f, SourceConfig{Token: first})
		for range 24 * 10 {
			later(time.Hour)
			if d := usableFor(t, s); d < expiryMargin {
				t.Fatalf("after %v the token has %v left", time.Since(f.began), d)
			}
		}
		// Two an hour, and one more for each access token.
		if n := len(f.requests()); n < 24*10*2 || n > 24*10*2+24 {
			t.Errorf("asked %d times in ten days", n)
		}
		if last := lastOf(f.requests()); last == first {
			t.Error("the access token was never renewed")
		}
		if _, err := s.LastError(); err != nil {
			t.Error(err)
		}
	})
}

func TestSourceRefreshesAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{tokenLife: time.Hour}
		running(t, f, SourceConfig{Token: NewSecret("opaque")})
		later(29 * time.Minute)
		if len(f.requests()) != 1 {
			t.Errorf("asked %d times before half of the token's life", len(f.requests()))
		}
		later(2 * time.Minute)
		if len(f.requests()) != 2 {
			t.Errorf("asked %d times after half of the token's life", len(f.requests()))
		}
	})
}

func TestSourceRenewsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		old := token(time.Now(), time.Now().Add(24*time.Hour), "old")
		if err := os.WriteFile(path, []byte(old.Reveal()+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		f := &fakeServer{tokenLife: 2 * time.Hour, accessLife: 24 * time.Hour}
		running(t, f, SourceConfig{TokenFile: link})
		later(11 * time.Hour)
		if got, err := ReadToken(path); err != nil || got != old {
			t.Errorf("before half of its life the token is replaced: %v", err)
		}
		later(2 * time.Hour)
		got, err := ReadToken(path)
		if err != nil {
			t.Fatal(err)
		}
		if got == old {
			t.Error("after half of its life the token is still there")
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link has become %v, %v", fi.Mode(), err)
		}
		later(2 * time.Hour)
		if last := lastOf(f.requests()); last != got {
			t.Error("the new token is not used")
		}
	})
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".token*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A file that cannot be replaced is replaced in memory, until somebody else
// changes it. The name leaves no room for a temporary one beside it, which
// stops root too.
func TestSourceFileCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("t", 255))
	synctest.Test(t, func(t *testing.T) {
		old := token(time.Now(), time.Now().Add(3*time.Hour), "old")
		if err := os.WriteFile(path, []byte(old.Reveal()), 0o600); err != nil {
			t.Fatal(err)
		}
		f := &fakeServer{tokenLife: time.Hour, accessLife: 3 * time.Hour, began: time.Now()}
		s, err := NewSource(SourceConfig{Fetch: f.fetch, TokenFile: path})
		if err != nil {
			t.Fatal(err)
		}
		// shown is the access token with which an expired one is replaced.
		shown := func() Secret {
			t.Helper()
			later(2 * time.Hour)
			if d := usableFor(t, s); d < 59*time.Minute {
				t.Errorf("the token has %v left", d)
			}
			return lastOf(f.requests())
		}
		if got := shown(); got != old {
			t.Error("the first token is not the one in the file")
		}
		if got := shown(); got == old {
			t.Error("the token in the file is shown, although a newer one is in memory")
		}
		if err := os.WriteFile(path, []byte("by hand"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := shown(); got.Reveal() != "by hand" {
			t.Error("the token that was put into the file is not shown")
		}
	})
}

func TestSourceServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{tokenLife: time.Hour}
		s := running(t, f, SourceConfig{Token: NewSecret("opaque")})
		f.setDown(ErrUnreachable)
		later(45 * time.Minute)
		// Half an hour of failures, at first a second apart, then two minutes.
		if n := len(f.requests()); n < 10 || n > 40 {
			t.Errorf("asked %d times in a quarter of an hour", n)
		}
		since, err := s.LastError()
		if !errors.Is(err, ErrUnreachable) || time.Since(since) > 16*time.Minute {
			t.Errorf("error %v since %v", err, since)
		}
		if d := usableFor(t, s); d < 10*time.Minute {
			t.Errorf("the token in hand has %v left", d)
		}
		later(20 * time.Minute)
		if _, err := s.Token(t.Context()); !errors.Is(err, ErrUnreachable) || !errors.Is(err, errExpired) {
			t.Errorf("error %v, want that the token expired and why", err)
		}
		// Asking is enough; nobody waits for the next turn.
		f.setDown(nil)
		if d := usableFor(t, s); d < 59*time.Minute {
			t.Errorf("the token has %v left", d)
		}
		if _, err := s.LastError(); err != nil {
			t.Error(err)
		}
	})
}

func TestSourceHeedsRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{tokenLife: time.Hour}
		running(t, f, SourceConfig{Token: NewSecret("opaque")})
		f.setDown(&Error{Kind: ErrThrottled, RetryAfter: time.Minute})
		later(35 * time.Minute)
		if n := len(f.requests()); n < 5 || n > 7 { // one good, one at half an hour, then one a minute
			t.Errorf("asked %d times in 35 minutes", n)
		}
	})
}

func TestSourceFirstErrorIsTold(t *testing.T) {
	f := &fakeServer{down: ErrUnauthorized}
	s, err := NewSource(SourceConfig{Fetch: f.fetch, Token: NewSecret("a")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Enroll(t.Context()); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("error %v", err)
	}
	if _, err := s.Roots(); err == nil {
		t.Error("roots before there are any")
	}
	if _, err := s.Token(t.Context()); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("error %v", err)
	}
}

func TestNewSourceRefuses(t *testing.T) {
	f := (&fakeServer{}).fetch
	for name, cfg := range map[string]SourceConfig{
		"no fetch": {Token: NewSecret("a")},
		"no token": {Fetch: f},
		"both":     {Fetch: f, Token: NewSecret("a"), TokenFile: "b"},
	} {
		if _, err := NewSource(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestReadTokenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": " \n", "large": string(make([]byte, maxTokenFile+1))} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadToken(path); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := ReadToken(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
