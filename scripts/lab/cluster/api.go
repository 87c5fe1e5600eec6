// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	requestLimit = 30 * time.Second
	fieldManager = "nasp-lab"
	// kindLimit is how long a kind may take to be served after its CRD.
	kindLimit = 20 * time.Second
)

// An API talks to the lab's API server as its administrator, by plain REST.
type API struct {
	client *http.Client
	token  string

	mu    sync.Mutex
	kinds map[string]kind // by "group/version Kind"
}

// A kind is where the objects of one kind are served.
type kind struct {
	path       string // of the group and version
	plural     string
	namespaced bool
}

// An Object is a Kubernetes object as JSON has it.
type Object map[string]any

func (o Object) name() string { return o.meta("name") }

func (o Object) meta(key string) string {
	var value any
	switch m := o["metadata"].(type) {
	case map[string]any:
		value = m[key]
	case Object: // what YAML decodes maps into, below an Object
		value = m[key]
	}
	s, _ := value.(string)
	return s
}

// API returns a client of the API server, which must have been started.
func (l *Lab) API() (*API, error) {
	if l.api != nil {
		return l.api, nil
	}
	pem, err := os.ReadFile(l.run("certs", "apiserver.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("read the API server's certificate: none in the file")
	}
	token, err := os.ReadFile(l.run("admin-token"))
	if err != nil {
		return nil, err
	}
	l.api = &API{
		client: &http.Client{Timeout: requestLimit, Transport: &http.Transport{
			DialContext:       DialIn(Node),
			TLSClientConfig:   &tls.Config{RootCAs: roots},
			ForceAttemptHTTP2: true,
		}},
		token: string(token),
		kinds: map[string]kind{},
	}
	return l.api, nil
}

// A StatusError is an answer of the API server other than success.
type StatusError struct {
	Code int
	Text string
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Code, e.Text) }

// Do sends one request; what is not nil is sent as JSON and read as JSON.
func (a *API) Do(ctx context.Context, method, path, contentType string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, apiURL+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	r.Header.Set("Content-Type", contentType)
	resp, err := a.client.Do(r)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %w", method, path, &StatusError{resp.StatusCode, strings.TrimSpace(string(b))})
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// Get reads an object by its path.
func (a *API) Get(ctx context.Context, path string) (Object, error) {
	var o Object
	err := a.Do(ctx, http.MethodGet, path, "application/json", nil, &o)
	return o, err
}

// Apply makes the objects of a YAML text what the text says, their status
// too, whether or not they exist. One with a status and no spec is of another
// file, and only its status is set.
func (a *API) Apply(ctx context.Context, text []byte) error {
	return eachObject(text, func(o Object) error { return a.apply(ctx, o) })
}

// Delete removes the objects of a YAML text; those that do not exist are fine.
func (a *API) Delete(ctx context.Context, text []byte) error {
	return eachObject(text, func(o Object) error {
		path, err := a.path(ctx, o)
		if err != nil {
			return err
		}
		err = a.Do(ctx, http.MethodDelete, path, "application/json", nil, nil)
		var status *StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			return nil
		}
		return err
	})
}

func eachObject(text []byte, f func(Object) error) error {
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var o Object
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read objects: %w", err)
		}
		if o == nil {
			continue
		}
		if err := f(o); err != nil {
			return err
		}
	}
}

func (a *API) apply(ctx context.Context, o Object) error {
	path, err := a.path(ctx, o)
	if err != nil {
		return err
	}
	const server = "application/apply-patch+yaml" // JSON is YAML
	query := "?force=true&fieldManager=" + fieldManager
	if o["spec"] != nil || o["status"] == nil {
		if err := a.Do(ctx, http.MethodPatch, path+query, server, o, nil); err != nil {
			return err
		}
	}
	if o["status"] == nil {
		return nil
	}
	return a.Do(ctx, http.MethodPatch, path+"/status"+query, server, o, nil)
}

// path is where an object is served.
func (a *API) path(ctx context.Context, o Object) (string, error) {
	version, _ := o["apiVersion"].(string)
	name, _ := o["kind"].(string)
	k, err := a.kind(ctx, version, name)
	if err != nil {
		return "", err
	}
	path := k.path
	if k.namespaced {
		namespace := o.meta("namespace")
		if namespace == "" {
			return "", fmt.Errorf("%s %s: no namespace", name, o.name())
		}
		path += "/namespaces/" + namespace
	}
	return path + "/" + k.plural + "/" + o.name(), nil
}

// kind asks where a kind is served, and waits if its CRD is new.
func (a *API) kind(ctx context.Context, version, name string) (kind, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := version + " " + name
	if k, ok := a.kinds[key]; ok {
		return k, nil
	}
	path := "/apis/" + version
	if !strings.Contains(version, "/") {
		path = "/api/" + version
	}
	err := Poll(ctx, kindLimit, "kind "+key, func(ctx context.Context) error {
		var list struct {
			Resources []struct {
				Name, Kind string
				Namespaced bool
			}
		}
		if err := a.Do(ctx, http.MethodGet, path, "application/json", nil, &list); err != nil {
			return err
		}
		for _, r := range list.Resources {
			if !strings.Contains(r.Name, "/") { // not a subresource
				a.kinds[version+" "+r.Kind] = kind{path: path, plural: r.Name, namespaced: r.Namespaced}
			}
		}
		if _, ok := a.kinds[key]; !ok {
			return errors.New("not served")
		}
		return nil
	})
	return a.kinds[key], err
}

// Token asks for a token of a service account.
func (a *API) Token(ctx context.Context, namespace, account, audience string, life time.Duration) (string, error) {
	in := Object{"spec": Object{"audiences": []string{audience}, "expirationSeconds": int(life.Seconds())}}
	var out struct{ Status struct{ Token string } }
	path := "/api/v1/namespaces/" + namespace + "/serviceaccounts/" + account + "/token"
	if err := a.Do(ctx, http.MethodPost, path, "application/json", in, &out); err != nil {
		return "", err
	}
	return out.Status.Token, nil
}
