// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/heimdall"
)

const (
	// IstioAudience is that of the tokens that istiod takes.
	IstioAudience = "istio-ca"
	// MinTokenLife is the shortest life that the API server gives a token.
	MinTokenLife = 10 * time.Minute
	// IstioTokenLife is asked for tokens for istiod. They are renewed at half
	// of it, and what was given away dies with them.
	IstioTokenLife = time.Hour
)

// ErrNotAuthentic is a token that the API server does not vouch for.
var ErrNotAuthentic = errors.New("the token is not authentic")

type tokenRequest struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"`
	Spec       tokenRequestSpec   `json:"spec"`
	Status     tokenRequestStatus `json:"status,omitzero"`
}

type tokenRequestSpec struct {
	Audiences         []string `json:"audiences"`
	ExpirationSeconds int64    `json:"expirationSeconds"`
}

type tokenRequestStatus struct {
	Token               string    `json:"token"`
	ExpirationTimestamp time.Time `json:"expirationTimestamp"`
}

// Mint asks for a token of a service account with one audience. The life may
// be another than the one that was asked for.
func (c *Client) Mint(ctx context.Context, namespace, account, audience string, life time.Duration) (heimdall.Secret, time.Time, error) {
	r := tokenRequest{
		APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest",
		Spec: tokenRequestSpec{[]string{audience}, int64(max(life, MinTokenLife).Seconds())},
	}
	var answer tokenRequest
	err := c.call(ctx, http.MethodPost, path("api", "v1", "namespaces", namespace, "serviceaccounts", account, "token"), nil, r, &answer)
	if err != nil {
		return heimdall.Secret{}, time.Time{}, fmt.Errorf("mint a token of %s/%s: %w", namespace, account, err)
	}
	return heimdall.NewSecret(answer.Status.Token), answer.Status.ExpirationTimestamp, nil
}

// An Account is a service account that a token speaks for.
type Account struct{ Namespace, Name string }

const accountPrefix = "system:serviceaccount:"

// Review asks the API server whose token this is. Only an account's token with
// the audience is authentic.
func (c *Client) Review(ctx context.Context, token heimdall.Secret, audience string) (Account, error) {
	type spec struct {
		Token     string   `json:"token"`
		Audiences []string `json:"audiences"`
	}
	in := struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       spec   `json:"spec"`
	}{"authentication.k8s.io/v1", "TokenReview", spec{token.Reveal(), []string{audience}}}
	var out struct {
		Status struct {
			Authenticated bool
			User          struct{ Username string }
			Audiences     []string
		}
	}
	if err := c.call(ctx, http.MethodPost, path("apis", "authentication.k8s.io", "v1", "tokenreviews"), nil, in, &out); err != nil {
		return Account{}, fmt.Errorf("review a token: %w", err)
	}
	// An API server that does not know audiences answers without any, and
	// would take a token for anything.
	if !out.Status.Authenticated || len(out.Status.Audiences) != 1 || out.Status.Audiences[0] != audience {
		return Account{}, ErrNotAuthentic
	}
	name, ok := strings.CutPrefix(out.Status.User.Username, accountPrefix)
	if !ok {
		return Account{}, ErrNotAuthentic
	}
	namespace, name, ok := strings.Cut(name, ":")
	if !ok || namespace == "" || name == "" {
		return Account{}, ErrNotAuthentic
	}
	return Account{namespace, name}, nil
}
