// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/nasp-tun/nasp-tun/heimdall/kube"
	"github.com/nasp-tun/nasp-tun/heimdall/server"
	"github.com/nasp-tun/nasp-tun/heimdall/webhook"
)

const (
	// The API server gives up after 10 s, so that longer waits serve nobody.
	webhookTimeout  = 10 * time.Second
	webhookMaxHead  = 32 << 10
	webhookIdleTime = 2 * time.Minute
)

// A hook is the pod webhook and its port.
type hook struct {
	listener net.Listener
	server   *http.Server
	delay    time.Duration // of the end, as the server's
}

// newWebhook opens the webhook's port; nil: none is wanted.
func newWebhook(ctx context.Context, cfg config, k *kube.Client, cert *server.Certificate, log *slog.Logger) (*hook, error) {
	w := cfg.webhook
	if w.listen == "" {
		return nil, nil
	}
	log = log.With("component", "webhook")
	h, err := webhook.New(webhook.Config{
		Image: w.image, PullPolicy: corev1.PullPolicy(w.pullPolicy), Namespace: w.namespace, Mesh: k.Mesh, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", w.listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the API server: %w", err)
	}
	return &hook{listener: l, delay: cfg.drainDelay, server: &http.Server{
		Handler: h, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.Get},
		ReadHeaderTimeout: webhookTimeout, ReadTimeout: webhookTimeout, WriteTimeout: 2 * webhookTimeout, IdleTimeout: webhookIdleTime,
		MaxHeaderBytes: webhookMaxHead, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

// run serves until ctx ends, a little longer, and to the end of what is under
// way.
func (h *hook) run(ctx context.Context) error {
	g, failed := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := h.server.ServeTLS(h.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the pod webhook: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-failed.Done()
		if ctx.Err() != nil {
			t := time.NewTimer(h.delay)
			defer t.Stop()
			<-t.C
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhookTimeout)
		defer cancel()
		return h.server.Shutdown(end)
	})
	return g.Wait()
}
