// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	// maxAnswer bounds an answer; a real one has some KiB, most of it roots.
	maxAnswer = 1 << 20
	maxHeader = 64 << 10
	// defaultTimeout bounds one enrolment: the server asks the Kubernetes API
	// several times.
	defaultTimeout = 15 * time.Second
	// accept prefers our form and takes nasp's.
	accept = MediaType + ", " + mediaJSON + ";q=0.5"
)

// ClientConfig configures a Client.
type ClientConfig struct {
	// URL of the server; without a path, /config is meant.
	URL string
	// Roots returns the PEM certificates that the server is verified by; nil:
	// the system's. It is asked for each enrolment, so a changed file counts.
	Roots func() ([]byte, error)
	// Dial opens connections; nil: the system's own way. A program whose
	// sockets need a mark passes its dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Name and Version say who asks; the server may log them.
	Name, Version string
	Timeout       time.Duration // of one enrolment; 0: 15 s
}

// A Client asks a Heimdall server for enrolments.
type Client struct {
	cfg ClientConfig
	url *url.URL
}

var (
	errScheme    = errors.New("the URL must begin with https://")
	errPlain     = errors.New("plain http would show the access token to the network: only loopback is allowed")
	errUserInfo  = errors.New("the URL must not hold a password")
	errNoHost    = errors.New("the URL has no host")
	errNoPEM     = errors.New("no certificate in it")
	errTooLarge  = errors.New("too large")
	errElsewhere = errors.New("it sends elsewhere, and the token is not taken there")
)

// NewClient checks a configuration.
func NewClient(cfg ClientConfig) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		// The error of url.Parse repeats the URL, and with it a password.
		return nil, fmt.Errorf("parse URL of Heimdall: %w", errors.Unwrap(err))
	}
	switch {
	case u.User != nil:
		err = errUserInfo
	case u.Scheme != "https" && u.Scheme != "http":
		err = errScheme
	case u.Hostname() == "":
		err = errNoHost
	case u.Scheme == "http" && !loopback(u.Hostname()):
		err = errPlain
	}
	if err != nil {
		return nil, fmt.Errorf("URL of Heimdall: %w", err)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/config"
	}
	u.Fragment = ""
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	return &Client{cfg: cfg, url: u}, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// Fetch shows an access token and returns what it is good for.
func (c *Client) Fetch(ctx context.Context, token Secret) (Enrollment, error) {
	if token.IsZero() {
		return Enrollment{}, c.fail(ErrNoToken, nil)
	}
	tlsConfig, err := c.tlsConfig()
	if err != nil {
		return Enrollment{}, c.fail(ErrUntrusted, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	body, err := json.Marshal(request{PodName: c.cfg.Name, Version: c.cfg.Version})
	if err != nil {
		return Enrollment{}, c.fail(ErrServer, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(body))
	if err != nil {
		return Enrollment{}, c.fail(ErrUnreachable, err)
	}
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	req.Header.Set("Content-Type", mediaJSON)
	req.Header.Set("Accept", accept)

	// Enrolments are minutes apart: each has a connection of its own.
	tr := &http.Transport{
		DialContext:            c.cfg.Dial,
		TLSClientConfig:        tlsConfig,
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
		ForceAttemptHTTP2:      true,
	}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return errElsewhere }}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error // repeats method and URL
		if errors.As(err, &u) {
			err = u.Err
		}
		if errors.Is(err, errElsewhere) {
			return Enrollment{}, c.fail(ErrServer, err)
		}
		return Enrollment{}, c.fail(transportKind(err), err)
	}
	defer resp.Body.Close()
	return c.read(resp)
}

func (c *Client) read(resp *http.Response) (Enrollment, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return Enrollment{}, c.fail(transportKind(err), err)
	}
	if resp.StatusCode != http.StatusOK {
		return Enrollment{}, &Error{
			URL: c.url.Redacted(), Kind: kindOf(resp.StatusCode), Status: resp.StatusCode, Detail: detail(b),
			RetryAfter: retryAfterOf(resp.Header),
		}
	}
	if len(b) > maxAnswer {
		return Enrollment{}, c.fail(ErrMalformed, errTooLarge)
	}
	e, err := decode(resp.Header.Get("Content-Type"), b)
	if err != nil {
		return Enrollment{}, c.fail(ErrMalformed, err)
	}
	return e, nil
}

// retryAfterOf reads the seconds of Retry-After. Its other form, a date, no
// server of this protocol sends.
func retryAfterOf(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Retry-After"), 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// detail is the message of a refusal, whose body is {"error": TEXT}.
func detail(body []byte) string {
	var f struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &f) != nil {
		return ""
	}
	return printable(f.Error)
}

func (c *Client) fail(kind, err error) error {
	if errors.Is(err, kind) {
		err = nil
	}
	return &Error{URL: c.url.Redacted(), Kind: kind, Err: err}
}

func (c *Client) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.cfg.Roots == nil {
		return cfg, nil
	}
	b, err := c.cfg.Roots()
	if err != nil {
		return nil, fmt.Errorf("read Heimdall's roots: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("read Heimdall's roots: %w", errNoPEM)
	}
	return cfg, nil
}
