// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

// reloadEvery is how often the source of the certificate is looked at. The
// files of a mounted Secret change behind a symbolic link, and a minute late.
const reloadEvery = 10 * time.Second

// A Loader reads a certificate chain and its key, in PEM.
type Loader func(ctx context.Context) (chain, key []byte, err error)

// Files loads from two files.
func Files(chainFile, keyFile string) Loader {
	return func(context.Context) (chain, key []byte, err error) {
		if chain, err = os.ReadFile(chainFile); err != nil {
			return nil, nil, err
		}
		key, err = os.ReadFile(keyFile)
		return chain, key, err
	}
}

// Secret loads from a Secret of type kubernetes.io/tls.
func Secret(c *kube.Client, namespace, name string) Loader {
	return func(ctx context.Context) (chain, key []byte, err error) {
		data, err := c.SecretData(ctx, namespace, name)
		return data["tls.crt"], data["tls.key"], err
	}
}

// A Certificate is the server's, as its source has it now. A source that has
// none, or half of one, leaves the last in force.
type Certificate struct {
	load    Loader
	logger  *slog.Logger
	current atomic.Pointer[tls.Certificate]
	lastErr string // owned by whoever reloads
}

// NewCertificate reads nothing yet; nil for logger: nobody is told.
func NewCertificate(load Loader, logger *slog.Logger) *Certificate {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Certificate{load: load, logger: logger}
}

// Load reads the certificate for the first time.
func (c *Certificate) Load(ctx context.Context) error {
	chain, key, err := c.load(ctx)
	if err != nil {
		return fmt.Errorf("load the server's certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("load the server's certificate: %w", err)
	}
	old := c.current.Swap(&pair)
	if old == nil || !old.Leaf.Equal(pair.Leaf) {
		c.logger.Info("certificate loaded", "names", pair.Leaf.DNSNames, "addresses", pair.Leaf.IPAddresses, "expires", pair.Leaf.NotAfter)
	}
	return nil
}

// Run looks for a new certificate until ctx ends.
func (c *Certificate) Run(ctx context.Context) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		text := ""
		if err := c.Load(ctx); err != nil && ctx.Err() == nil {
			text = err.Error()
		}
		if text != "" && text != c.lastErr {
			c.logger.Warn("certificate not reloaded, the last one stands", "err", text)
		}
		c.lastErr = text
	}
}

var errNotLoaded = errors.New("no certificate is loaded yet")

// Get implements tls.Config.GetCertificate.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if p := c.current.Load(); p != nil {
		return p, nil
	}
	return nil, errNotLoaded
}

// expiry is the end of the certificate in Unix time; 0: none.
func (c *Certificate) expiry() float64 {
	p := c.current.Load()
	if p == nil {
		return 0
	}
	return float64(p.Leaf.NotAfter.Unix())
}
