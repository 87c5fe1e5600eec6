// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/heimdall/kube"
)

const (
	// A request is a head and two short strings; whoever needs longer for them
	// is holding a connection.
	headTimeout  = 5 * time.Second
	readTimeout  = 15 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = time.Minute
	maxHead      = 32 << 10
	// lookupTimeout bounds what the API server is asked for one request.
	lookupTimeout = 20 * time.Second
	// probeTimeout is below the second that a kubelet waits.
	probeTimeout = 900 * time.Millisecond
	// shutdownTimeout bounds the requests that are under way at the end.
	shutdownTimeout = 20 * time.Second
)

// Config configures a Server.
type Config struct {
	// Public is where laptops come, and Internal where probes and metrics do.
	// Run closes both.
	Public, Internal net.Listener
	Certificate      *Certificate
	Kube             *kube.Client
	// Namespaces are those whose groups are served. Others are none of
	// Heimdall's, and its account has no rights there.
	Namespaces []string
	// AnyAccount serves accounts without the annotation that allows it.
	AnyAccount bool
	Limits     Limits
	// DrainDelay is how long requests are still taken after the readiness
	// probe has begun to fail, so that no balancer sends one into the void;
	// 0: 5 s, below 0: none.
	DrainDelay time.Duration

	Registerer prometheus.Registerer // nil: nothing is counted
	Gatherer   prometheus.Gatherer   // what /metrics shows; nil: nothing
	Logger     *slog.Logger          // nil: nobody is told
	Audit      *slog.Logger          // one line an answer; nil: Logger
}

// A Server answers laptops.
type Server struct {
	cfg     Config
	limits  *limiter
	metrics *metrics

	draining atomic.Bool
	informed atomic.Bool // the mesh was read once
}

var (
	errNoListener    = errors.New("heimdall server: no listener")
	errNoCertificate = errors.New("heimdall server: no certificate")
	errNoKube        = errors.New("heimdall server: no Kubernetes API")
	errNoNamespace   = errors.New("heimdall server: no namespace to serve")
)

// New checks a configuration.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Public == nil || cfg.Internal == nil:
		return nil, errNoListener
	case cfg.Certificate == nil:
		return nil, errNoCertificate
	case cfg.Kube == nil:
		return nil, errNoKube
	case len(cfg.Namespaces) == 0:
		return nil, errNoNamespace
	}
	if cfg.DrainDelay == 0 {
		cfg.DrainDelay = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = cfg.Logger
	}
	if cfg.Gatherer == nil {
		cfg.Gatherer = prometheus.NewRegistry()
	}
	m, err := newMetrics(cfg.Registerer, cfg.Certificate)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, limits: newLimiter(cfg.Limits), metrics: m}, nil
}

// Run serves until ctx ends, and then until what is under way is answered.
func (s *Server) Run(ctx context.Context) error {
	noise := slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug)
	public := &http.Server{
		Handler:           s.audited(heimdall.Handler(s.lookup)),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.cfg.Certificate.Get},
		ReadHeaderTimeout: headTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHead, ErrorLog: noise,
	}
	internal := &http.Server{
		Handler:           s.internal(),
		ReadHeaderTimeout: headTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHead, ErrorLog: noise,
	}
	g, failed := errgroup.WithContext(ctx)
	g.Go(func() error { return served(public.ServeTLS(s.cfg.Public, "", "")) })
	g.Go(func() error { return served(internal.Serve(s.cfg.Internal)) })
	g.Go(func() error { return s.cfg.Certificate.Run(failed) })
	g.Go(func() error {
		<-failed.Done()
		s.drain(ctx)
		// The probes are answered until the last request is.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		return errors.Join(stop(end, public), stop(end, internal))
	})
	return g.Wait()
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve enrolments: %w", err)
}

// drain lets balancers see that this replica ends. After a failure there is
// nothing to wait for.
func (s *Server) drain(ctx context.Context) {
	s.draining.Store(true)
	if ctx.Err() == nil || s.cfg.DrainDelay < 0 {
		return
	}
	s.cfg.Logger.Info("draining", "delay", s.cfg.DrainDelay)
	t := time.NewTimer(s.cfg.DrainDelay)
	defer t.Stop()
	<-t.C
}

func stop(ctx context.Context, h *http.Server) error {
	if err := h.Shutdown(ctx); err != nil {
		return errors.Join(err, h.Close())
	}
	return nil
}

func (s *Server) internal() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

var errDraining = errors.New("draining")

// ready reports why no requests should come. An API server that goes away
// later does not count: no other replica would have a better one, and laptops
// get to know more from an answer than from a closed port.
func (s *Server) ready(ctx context.Context) error {
	if s.draining.Load() {
		return errDraining
	}
	if _, err := s.cfg.Certificate.Get(nil); err != nil {
		return err
	}
	if s.informed.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if _, err := s.cfg.Kube.Mesh(ctx); err != nil {
		return err
	}
	s.informed.Store(true)
	return nil
}
