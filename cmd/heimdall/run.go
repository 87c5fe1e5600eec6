// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/nasp-tun/nasp-tun/heimdall/controller"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
	"github.com/nasp-tun/nasp-tun/heimdall/server"
)

// restartDelay is between two managers: a lease that could not be renewed
// means an API server that is away.
const restartDelay = 2 * time.Second

// run is the whole program: it joins the server and the controller, and ends
// both with ctx.
func run(ctx context.Context, cfg config, stderr io.Writer) error {
	log := logger(cfg, stderr)
	// What Kubernetes' libraries say goes where everything goes.
	ctrl.SetLogger(logr.FromSlogHandler(log.With("component", "controller").Handler()))
	klog.SetSlogLogger(log.With("component", "client"))

	api, err := restConfig(cfg)
	if err != nil {
		return err
	}
	k, err := kube.New(kube.Config{
		REST: api, Revision: cfg.revision, IstioNamespace: cfg.istioNamespace, GatewayNamespace: cfg.gatewayNamespace,
		GatewaySelector: cfg.gatewaySelector, Address: cfg.istiodAddress, ClusterID: cfg.clusterID,
	})
	if err != nil {
		return err
	}
	defer k.Close()
	metrics, err := controller.NewMetrics(ctrlmetrics.Registry)
	if err != nil {
		return err
	}
	s, err := newServer(ctx, cfg, k, log)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error {
		return runController(ctx, api, controller.Config{
			Namespaces: cfg.namespaces, AnyAccount: cfg.anyAccount, LeaseNamespace: cfg.leaseNamespace, Metrics: metrics,
		}, log)
	})
	return g.Wait()
}

func restConfig(cfg config) (*rest.Config, error) {
	if cfg.kubeconfig == "" && cfg.context == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server (--kubeconfig tells it): %w", err)
		}
		return c, nil
	}
	c, _, err := kube.Kubeconfig(cfg.kubeconfig, cfg.context)
	return c, err
}

// newServer opens the ports, so that a port that is taken is told at once.
func newServer(ctx context.Context, cfg config, k *kube.Client, log *slog.Logger) (*server.Server, error) {
	log = log.With("component", "server")
	load := server.Files(cfg.certFile, cfg.keyFile)
	if cfg.secret != "" {
		load = server.Secret(k, cfg.secretNamespace, cfg.secret)
	}
	cert := server.NewCertificate(load, log)
	if err := cert.Load(ctx); err != nil {
		// An issuer may need a while; the readiness probe tells meanwhile.
		log.Warn("no certificate yet", "err", err)
	}
	public, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		return nil, fmt.Errorf("listen for laptops: %w", err)
	}
	internal, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.listenInternal)
	if err != nil {
		return nil, fmt.Errorf("listen for probes: %w", err)
	}
	log.Info("listening", "public", public.Addr().String(), "internal", internal.Addr().String(), "namespaces", cfg.namespaces)
	delay := cfg.drainDelay
	if delay == 0 {
		delay = -1 // of the server's: none
	}
	return server.New(server.Config{
		Public: public, Internal: internal, Certificate: cert, Kube: k, Namespaces: cfg.namespaces, AnyAccount: cfg.anyAccount,
		Limits: server.Limits{SourceRate: cfg.sourceRate, TokenRate: cfg.tokenRate}, DrainDelay: delay,
		Registerer: ctrlmetrics.Registry, Gatherer: ctrlmetrics.Registry, Logger: log, Audit: log.With("component", "audit"),
	})
}

// runController runs one manager after the other until ctx ends. A manager
// ends when it cannot renew its lease, and controller-runtime would have the
// program end with it, lest two leaders write: here the server lives on, since
// laptops need it, and two writers do no harm, for each write of a Secret
// names the version or the absence that it replaces.
func runController(ctx context.Context, api *rest.Config, cfg controller.Config, log *slog.Logger) error {
	for {
		err := startManager(ctx, api, cfg)
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("the controller ended and is started again", "component", "controller", "err", err)
		t := time.NewTimer(restartDelay)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func startManager(ctx context.Context, api *rest.Config, cfg controller.Config) error {
	mgr, err := ctrl.NewManager(api, controller.Options(cfg))
	if err != nil {
		return err
	}
	if err := controller.Add(mgr, cfg); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func logger(cfg config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.logLevel}
	if cfg.logFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
