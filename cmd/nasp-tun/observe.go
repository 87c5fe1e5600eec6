// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// newRegistry returns a registry that knows the process and the build.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	b := readBuildInfo()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nasp_tun_build_info", Help: "1; the labels say what runs.",
			ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
		}, func() float64 { return 1 }),
	)
	return r
}

// observe opens the session's socket, and the metrics' if asked for.
func (t *tunnel) observe(s *services) error {
	if addr := t.cfg.Observe.MetricsAddr; addr != "" {
		l, err := (&net.ListenConfig{}).Listen(s.ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("serve metrics: %w", err)
		}
		s.assist("metrics", func(ctx context.Context) error { return serveHTTP(ctx, l, t.metricsHandler(), t.log) })
	}
	l, _, err := listenSession(sessionDirs(t.cfg.env), t.name)
	if err != nil {
		// CMD can do without being looked at.
		t.log.Warn("this session cannot be asked for its status", "err", err)
		return nil
	}
	a := &admin{
		status: t.status, services: t.services, explain: t.explain, dump: t.dump,
		level: t.logs.level, log: t.log.With("component", "admin"),
	}
	s.assist("admin", func(ctx context.Context) error { return a.serve(ctx, l) })
	return nil
}

// metricsHandler is what TCP serves: figures, and whether the session is well.
func (t *tunnel) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-t.mesh.Ready():
			fmt.Fprintln(w, "ok")
		default:
			http.Error(w, "not in the mesh yet", http.StatusServiceUnavailable)
		}
	})
	return mux
}

func (t *tunnel) status() any {
	conf := t.names.resolvers.Config()
	servers := make([]string, len(conf.Servers))
	for i, s := range conf.Servers {
		servers[i] = s.String()
	}
	stats := t.stack.Stats()
	return &sessionStatus{
		versioned: v1, Session: t.name, PID: os.Getpid(), Command: t.args, Started: t.started,
		Version: readBuildInfo().Version, Mesh: t.mesh.Status(), Warnings: slices.Clone(t.told),
		DNS:      dnsStatus{Resolver: host.ResolverAddr.String(), Upstream: servers, Search: conf.Search},
		Flows:    flowStatus{TCP: stats.TCP.Open, UDP: stats.UDP.Sessions, Refused: stats.TCP.Rejected + stats.UDP.Rejected},
		Device:   deviceStatus{MTU: t.device.MTU, Offload: t.device.TSO},
		Settings: t.cfg.effective,
	}
}

func (t *tunnel) services(pattern string) (any, error) {
	found, err := t.mesh.Services(pattern)
	if err != nil {
		return nil, err
	}
	answer := servicesAnswer{versioned: v1, Services: []serviceRow{}}
	for _, f := range found {
		row := serviceRow{Host: f.Name, Namespace: f.Namespace, Addresses: []string{}, Ports: []servicePort{}}
		for _, a := range f.Addresses {
			row.Addresses = append(row.Addresses, a.String())
		}
		for _, p := range f.Ports {
			row.Ports = append(row.Ports, servicePort{p.Number, p.Protocol, p.MTLS, p.Healthy, p.Total})
		}
		answer.Services = append(answer.Services, row)
	}
	return &answer, nil
}

func (t *tunnel) explain(_ context.Context, text string) (any, error) {
	to, err := parseTarget(text)
	if err != nil {
		return nil, err
	}
	e, err := t.mesh.Explain(to.host, to.port, to.path)
	if err != nil {
		return nil, err
	}
	return &explainAnswer{versioned: v1, Explanation: e}, nil
}

func (t *tunnel) dump() any { return t.mesh.ConfigDump() }
