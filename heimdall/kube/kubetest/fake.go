// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/client-go/rest"
)

// A Fake answers gets, lists by label, TokenRequests and TokenReviews.
type Fake struct {
	server *httptest.Server

	mu      sync.Mutex
	objects map[string]map[string]any // by path
	issued  map[string]bool
	calls   []string
	fault   func(r *http.Request) int
}

// NewFake starts a fake with the objects of a YAML text, named by their path:
// each document has one key, the path.
func NewFake(t testing.TB, objects string) *Fake {
	f := &Fake{objects: make(map[string]map[string]any), issued: make(map[string]bool)}
	var all map[string]map[string]any
	if err := yaml.Unmarshal([]byte(objects), &all); err != nil {
		t.Fatal(err)
	}
	for path, o := range all {
		f.Put(path, o)
	}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

// REST is how the fake is reached.
func (f *Fake) REST() *rest.Config { return &rest.Config{Host: f.server.URL} }

// Put stores an object; nil removes it.
func (f *Fake) Put(path string, o map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o == nil {
		delete(f.objects, path)
		return
	}
	f.objects[path] = o
}

// Fault answers calls with a status for as long as it returns one; nil: none.
func (f *Fake) Fault(fault func(r *http.Request) int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// Calls returns what was asked since the last time.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.calls
	f.calls = nil
	return c
}

// Issue makes a token that the fake vouches for.
func (f *Fake) Issue(namespace, account, audience string, issued, expiry time.Time) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.issue(namespace, account, audience, issued, expiry)
}

func (f *Fake) issue(namespace, account, audience string, issued, expiry time.Time) string {
	claims, err := json.Marshal(map[string]any{
		"sub": "system:serviceaccount:" + namespace + ":" + account, "aud": []string{audience},
		"iat": issued.Unix(), "exp": expiry.Unix(), "jti": len(f.issued),
	})
	if err != nil {
		panic(err) // strings and numbers
	}
	token := "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"
	f.issued[token] = true
	return token
}

// ServeHTTP implements http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, r.Method+" "+r.URL.Path)
	if f.fault != nil {
		if code := f.fault(r); code != 0 {
			answer(w, code, map[string]any{"kind": "Status", "message": "a fault of the test"})
			return
		}
	}
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/token"):
		f.tokenRequest(w, r)
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/tokenreviews"):
		f.tokenReview(w, r)
	case r.Method == http.MethodGet && r.URL.Query().Has("labelSelector"):
		f.list(w, r)
	case r.Method == http.MethodGet && f.objects[r.URL.Path] != nil:
		answer(w, http.StatusOK, f.objects[r.URL.Path])
	default:
		notFound(w, r.URL.Path)
	}
}

func (f *Fake) list(w http.ResponseWriter, r *http.Request) {
	items := []any{}
	for path, o := range f.objects {
		if strings.HasPrefix(path, r.URL.Path+"/") && matches(o, r.URL.Query().Get("labelSelector")) {
			items = append(items, o)
		}
	}
	answer(w, http.StatusOK, map[string]any{"items": items})
}

func matches(o map[string]any, selector string) bool {
	m, _ := o["metadata"].(map[string]any)
	labels, _ := m["labels"].(map[string]any)
	for term := range strings.SplitSeq(selector, ",") {
		key, value, _ := strings.Cut(term, "=")
		if labels[key] != value {
			return false
		}
	}
	return true
}

func (f *Fake) tokenRequest(w http.ResponseWriter, r *http.Request) {
	account := strings.TrimSuffix(r.URL.Path, "/token")
	if f.objects[account] == nil {
		notFound(w, account)
		return
	}
	var in struct {
		Spec struct {
			Audiences         []string
			ExpirationSeconds int64
		}
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil || len(in.Spec.Audiences) != 1 || in.Spec.ExpirationSeconds < 600 {
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "may not specify a duration less than 10 minutes"})
		return
	}
	p := strings.Split(account, "/") // "", api, v1, namespaces, NS, serviceaccounts, SA
	now := time.Now()
	expiry := now.Add(time.Duration(in.Spec.ExpirationSeconds) * time.Second).Truncate(time.Second)
	answer(w, http.StatusCreated, map[string]any{"status": map[string]any{
		"token": f.issue(p[4], p[6], in.Spec.Audiences[0], now, expiry), "expirationTimestamp": expiry.UTC().Format(time.RFC3339),
	}})
}

func (f *Fake) tokenReview(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Spec struct {
			Token     string
			Audiences []string
		}
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil {
		answer(w, http.StatusBadRequest, map[string]any{"message": "no JSON"})
		return
	}
	status := map[string]any{"authenticated": false}
	var claims struct {
		Sub string
		Aud []string
		Exp int64
	}
	if parts := strings.Split(in.Spec.Token, "."); f.issued[in.Spec.Token] && len(parts) == 3 {
		if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil && json.Unmarshal(b, &claims) == nil {
			both := slices.DeleteFunc(claims.Aud, func(a string) bool { return !slices.Contains(in.Spec.Audiences, a) })
			if len(both) > 0 && time.Now().Unix() < claims.Exp {
				status = map[string]any{"authenticated": true, "audiences": both, "user": map[string]any{"username": claims.Sub}}
			}
		}
	}
	answer(w, http.StatusCreated, map[string]any{"status": status})
}

func notFound(w http.ResponseWriter, path string) {
	answer(w, http.StatusNotFound, map[string]any{"kind": "Status", "message": fmt.Sprintf("%s not found", path)})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		panic(err) // the test's own objects
	}
}
