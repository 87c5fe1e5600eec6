// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// AudienceCA is the audience of the tokens that istiod takes.
const AudienceCA = "istio-ca"

// Claims say whom a token speaks for.
type Claims struct {
	ServiceAccount, Namespace string
	Audience                  string        // "": AudienceCA
	TTL                       time.Duration // 0: Config.TokenTTL; negative: expired already
}

// jwt is the part of a Kubernetes service-account token that matters here.
type jwt struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	Expiry   int64    `json:"exp"`
	IssuedAt int64    `json:"iat"`
	ID       string   `json:"jti"`
}

// header is the same for all our tokens: they are signed with a secret of the
// mesh where a cluster would use an RSA key.
var header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

const subjectPrefix = "system:serviceaccount:"

var (
	errTokenForged   = errors.New("signature does not match")
	errTokenExpired  = errors.New("token has expired")
	errTokenAudience = errors.New("token has the wrong audience")
)

// A mint makes and checks tokens in the form of Kubernetes service-account
// tokens, so that a client that reads their expiry finds it.
type mint struct{ secret [32]byte }

func newMint() *mint {
	m := &mint{}
	rand.Read(m.secret[:]) // never fails
	return m
}

func (m *mint) sign(s string) string {
	h := hmac.New(sha256.New, m.secret[:])
	h.Write([]byte(s))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func (m *mint) token(c Claims) string {
	now := time.Now()
	body, err := json.Marshal(jwt{
		Issuer:   "https://kubernetes.default.svc." + domain,
		Subject:  subjectPrefix + c.Namespace + ":" + c.ServiceAccount,
		Audience: []string{c.Audience},
		IssuedAt: now.Unix(),
		Expiry:   now.Add(c.TTL).Unix(),
		ID:       rand.Text(),
	})
	if err != nil {
		panic(err) // a struct of strings and numbers always marshals
	}
	s := header + "." + base64.RawURLEncoding.EncodeToString(body)
	return s + "." + m.sign(s)
}

// verify returns the account that a token speaks for.
func (m *mint) verify(token, audience string) (account, namespace string, err error) {
	i := strings.LastIndexByte(token, '.')
	if i < 0 || !hmac.Equal([]byte(m.sign(token[:i])), []byte(token[i+1:])) {
		return "", "", errTokenForged
	}
	_, payload, _ := strings.Cut(token[:i], ".")
	body, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return "", "", fmt.Errorf("decode token: %w", err)
	}
	var t jwt
	if err := json.Unmarshal(body, &t); err != nil {
		return "", "", fmt.Errorf("decode token: %w", err)
	}
	if !slices.Contains(t.Audience, audience) {
		return "", "", errTokenAudience
	}
	if time.Now().Unix() >= t.Expiry {
		return "", "", errTokenExpired
	}
	namespace, account, _ = strings.Cut(strings.TrimPrefix(t.Subject, subjectPrefix), ":")
	return account, namespace, nil
}
