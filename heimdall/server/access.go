// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

// renewAfter is the part of an access token's life after which an answer
// carries the next one. Clients ask at half life by their own clocks, which
// are not ours.
const renewAfter = 0.4

// A refusal is an error whose text is for the laptop's owner: what is wrong,
// and what to do. It hides its cause, which is for the log.
type refusal struct {
	kind error // a sentinel of package heimdall
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

// lookup tells what an access token is good for.
func (s *Server) lookup(ctx context.Context, token string) (heimdall.Enrollment, error) {
	rec := recordOf(ctx)
	release, limit := s.limits.admit(rec.source, token)
	if limit != "" {
		s.metrics.throttled.WithLabelValues(limit).Inc()
		return heimdall.Enrollment{}, rec.refused(refuse(heimdall.ErrThrottled, "asked too often: wait and try again"))
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	secret := heimdall.NewSecret(token)
	g, err := s.authorize(ctx, rec, secret)
	if err == nil {
		var e heimdall.Enrollment
		if e, err = s.enroll(ctx, g, secret); err == nil {
			return e, nil
		}
	}
	return heimdall.Enrollment{}, rec.refused(s.explain(ctx, err))
}

// authorize finds the group that a token stands for, and checks that it still
// may.
func (s *Server) authorize(ctx context.Context, rec *record, token heimdall.Secret) (kube.Group, error) {
	namespace, name, err := claimed(token)
	if err != nil {
		return kube.Group{}, err
	}
	rec.namespace, rec.group = namespace, name
	account, err := s.cfg.Kube.Review(ctx, token, kube.Audience(namespace, name))
	if errors.Is(err, kube.ErrNotAuthentic) {
		return kube.Group{}, refuse(heimdall.ErrUnauthorized, "the access token %s: get a new one: %s", ending(token), howTo(namespace, name))
	}
	if err != nil {
		return kube.Group{}, err
	}
	rec.account = account.Namespace + "/" + account.Name
	if !slices.Contains(s.cfg.Namespaces, namespace) {
		return kube.Group{}, refuse(heimdall.ErrForbidden, "namespace %s is not one that Heimdall serves", namespace)
	}
	g, err := s.cfg.Kube.Group(ctx, namespace, name)
	switch {
	case errors.Is(err, kube.ErrNotFound):
		return g, refuse(heimdall.ErrNotFound, "WorkloadGroup %s/%s does not exist", namespace, name)
	case err != nil:
		return g, err
	case g.ServiceAccount == "":
		return g, refuse(heimdall.ErrForbidden, "WorkloadGroup %s/%s names no account: set its spec.template.serviceAccount", namespace, name)
	case account != (kube.Account{Namespace: namespace, Name: g.ServiceAccount}):
		return g, refuse(heimdall.ErrForbidden, "the access token is one of account %s/%s, and WorkloadGroup %s/%s has account %s",
			account.Namespace, account.Name, namespace, name, g.ServiceAccount)
	case !g.Monitored:
		return g, refuse(heimdall.ErrForbidden, "WorkloadGroup %s/%s has no label %s=true", namespace, name, kube.MonitoringLabel)
	}
	return g, s.checkAllowed(ctx, account)
}

func (s *Server) checkAllowed(ctx context.Context, account kube.Account) error {
	if s.cfg.AnyAccount {
		return nil
	}
	ok, err := s.cfg.Kube.Allowed(ctx, account)
	if err != nil {
		return err
	}
	if !ok {
		return refuse(heimdall.ErrForbidden, "account %s/%s has no annotation %s=true", account.Namespace, account.Name, kube.AllowedAnnotation)
	}
	return nil
}

// enroll makes the answer, with the next access token if the one that was
// shown is no longer young.
func (s *Server) enroll(ctx context.Context, g kube.Group, shown heimdall.Secret) (heimdall.Enrollment, error) {
	e, err := s.cfg.Kube.Enroll(ctx, g.Workload())
	if err != nil {
		return e, err
	}
	s.informed.Store(true)
	issued, expiry := shown.Life()
	if time.Since(issued) >= time.Duration(renewAfter*float64(expiry.Sub(issued))) {
		e.AccessToken, e.AccessTokenExpiry, err = s.cfg.Kube.Mint(ctx, g.Namespace, g.ServiceAccount, kube.Audience(g.Namespace, g.Name), g.Life)
	}
	return e, err
}

// explain turns an error of the cluster into a refusal that says no more of
// the cluster than a workload may know.
func (s *Server) explain(ctx context.Context, err error) error {
	var r *refusal
	if errors.As(err, &r) {
		return err
	}
	s.cfg.Logger.ErrorContext(ctx, "enrolment not looked up", "err", err)
	switch {
	case errors.Is(err, kube.ErrNoGateway), errors.Is(err, kube.ErrNoIstiod):
		return refuse(heimdall.ErrUnavailable, "the mesh cannot be entered now: %v", err)
	case errors.Is(err, kube.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return refuse(heimdall.ErrUnavailable, "the Kubernetes API does not answer: try again")
	}
	return err // Handler says "internal error"
}

const audiencePrefix = "nasp-heimdall:workloadgroup:"

// claimed reads which group a token says that it is for. Nothing is verified
// here: it only chooses the audience that the API server is asked about.
func claimed(token heimdall.Secret) (namespace, group string, err error) {
	wrong := refuse(heimdall.ErrUnauthorized, "the access token is not one for Heimdall: its audience must be %sNAMESPACE:GROUP", audiencePrefix)
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return "", "", wrong
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", "", wrong
	}
	var claims struct {
		Aud audiences `json:"aud"`
	}
	if json.Unmarshal(body, &claims) != nil || len(claims.Aud) != 1 {
		return "", "", wrong
	}
	rest, ok := strings.CutPrefix(claims.Aud[0], audiencePrefix)
	if !ok {
		return "", "", wrong
	}
	namespace, group, ok = strings.Cut(rest, ":")
	if !ok || !isName(namespace) || !isName(group) {
		return "", "", wrong
	}
	return namespace, group, nil
}

// audiences is a string or a list of them (RFC 7519, 4.1.3).
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*a = []string{""}
		return json.Unmarshal(b, &(*a)[0])
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// maxName is that of a Kubernetes object.
const maxName = 253

// isName reports whether s can name a Kubernetes object: it becomes part of a
// path and of the audit.
func isName(s string) bool {
	if s == "" || len(s) > maxName || strings.Trim(s, ".-") != s {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
	})
}

// ending says why a token is not taken, as far as it tells itself.
func ending(token heimdall.Secret) string {
	if _, expiry := token.Life(); !expiry.IsZero() && time.Now().After(expiry) {
		return "expired at " + expiry.UTC().Format(time.RFC3339)
	}
	return "is not accepted by the cluster (forged, revoked, or of another cluster)"
}

// howTo is the way to a new token, as the quick start has it.
func howTo(namespace, group string) string {
	return "kubectl -n " + namespace + " get secret " + group + "-nasp-token -o jsonpath={.data.token} | base64 -d"
}
