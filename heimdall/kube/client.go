// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// maxAnswer bounds an answer of the API; etcd holds no object of more than
	// 1.5 MiB, and the only lists asked for have a few Services.
	maxAnswer = 8 << 20
	// defaultTimeout bounds one call.
	defaultTimeout = 10 * time.Second
)

var (
	// ErrNotFound is an object that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrForbidden is a call that the API server's RBAC refuses.
	ErrForbidden = errors.New("forbidden by the cluster's RBAC")
	// ErrUnavailable is an API server that does not answer, or answers that it
	// cannot now.
	ErrUnavailable = errors.New("the Kubernetes API is not available")
)

// Config configures a Client. Of its zero values only REST has no default.
type Config struct {
	// REST says how the API server is reached and who asks.
	REST *rest.Config
	// Revision is that of istiod; "": "default".
	Revision string
	// IstioNamespace is where istiod runs; "": istio-system.
	IstioNamespace string
	// GatewayNamespace is where the east-west gateway's Service is; "": that
	// of istiod.
	GatewayNamespace string
	// GatewaySelector chooses the gateway's Service; "": istio=eastwestgateway.
	GatewaySelector string
	// Address is where istiod is dialled, host:port; "": at the gateway.
	Address string
	// ClusterID is istiod's name of the cluster; "": what its injector says.
	ClusterID string
	// FactsAge is how long what was read of the mesh is used; 0: 10 s. It
	// bounds the load that many clients put on the API server, and how late a
	// changed address of the gateway is seen.
	FactsAge time.Duration
	// Now tells the time; nil: time.Now.
	Now func() time.Time
}

// A Client asks the API server. It may be used from any goroutine.
type Client struct {
	cfg  Config
	base *url.URL
	http *http.Client

	reading chan struct{} // holds one value while somebody reads the facts
	facts   *Mesh         // guarded by reading
	read    time.Time     // guarded by reading
}

var errNoREST = errors.New("kubernetes client: no way to the API server")

// New checks a configuration. It asks nothing yet.
func New(cfg Config) (*Client, error) {
	if cfg.REST == nil {
		return nil, errNoREST
	}
	r := rest.CopyConfig(cfg.REST)
	if r.Timeout == 0 {
		r.Timeout = defaultTimeout
	}
	base, _, err := rest.DefaultServerUrlFor(r)
	if err != nil {
		return nil, fmt.Errorf("address of the Kubernetes API %q: %w", r.Host, err)
	}
	h, err := rest.HTTPClientFor(r)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	cfg.Revision = either(cfg.Revision, defaultRevision)
	cfg.IstioNamespace = either(cfg.IstioNamespace, "istio-system")
	cfg.GatewayNamespace = either(cfg.GatewayNamespace, cfg.IstioNamespace)
	cfg.GatewaySelector = either(cfg.GatewaySelector, "istio=eastwestgateway")
	if cfg.FactsAge == 0 {
		cfg.FactsAge = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Client{cfg: cfg, base: base, http: h, reading: make(chan struct{}, 1)}, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Kubeconfig reads a kubeconfig as kubectl does, and the namespace that its
// context names. An empty path stands for $KUBECONFIG, then ~/.kube/config; an
// empty name for the current context.
func Kubeconfig(path, contextName string) (cfg *rest.Config, namespace string, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = path
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: contextName})
	if cfg, err = loader.ClientConfig(); err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	if namespace, _, err = loader.Namespace(); err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	return cfg, namespace, nil
}

// A StatusError is a refusal of the API server. It is one of the sentinels of
// this package where one fits.
type StatusError struct {
	Operation string // GET /api/v1/…
	Code      int
	Message   string
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: %d %s: %s", e.Operation, e.Code, http.StatusText(e.Code), e.Message)
}

// Is implements the test of errors.Is.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == http.StatusNotFound
	case ErrForbidden:
		return e.Code == http.StatusForbidden
	case ErrUnavailable:
		return e.Code >= http.StatusInternalServerError || e.Code == http.StatusTooManyRequests
	}
	return false
}

// path joins the pieces of an API path; each piece is one segment.
func path(pieces ...string) string {
	var b bytes.Buffer
	for _, p := range pieces {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// get reads an object.
func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.call(ctx, http.MethodGet, path, query, nil, out)
}

// call makes one call. Bodies are never part of an error: they hold tokens.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	operation := method + " " + path
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", operation, err)
		}
		body = bytes.NewReader(b)
	}
	target := *c.base
	escaped, err := url.Parse(path)
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	target = *target.JoinPath(escaped.EscapedPath())
	target.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, operation, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return &StatusError{operation, resp.StatusCode, statusMessage(b)}
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

// statusMessage is the text of a Status object.
func statusMessage(b []byte) string {
	var s struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &s) != nil || s.Message == "" {
		return "no explanation"
	}
	return s.Message
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
