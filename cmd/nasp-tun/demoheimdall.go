// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// The workload that the demo enrols: one of nasp's quick start.
const (
	demoNamespace = "external"
	demoAccount   = "test-http"

	// demoAudience is what makes a token one for Heimdall.
	demoAudience = "nasp-heimdall:workloadgroup:" + demoNamespace + ":" + demoAccount

	// demoTokenTTL lets demo --serve be used for a working day.
	demoTokenTTL = 24 * time.Hour
)

// A demoHeimdall serves /config for the demo's mesh over HTTPS on loopback.
// The handler is that of the server in a cluster; what stands in for Kubernetes
// is lookup.
type demoHeimdall struct {
	url   *url.URL
	token string // for whoever enrols
	stop  func()
	mesh  *minimesh.Mesh
}

func startDemoHeimdall(ctx context.Context, m *minimesh.Mesh, log *slog.Logger) (*demoHeimdall, error) {
	cert, err := m.IssueServer("127.0.0.1", "localhost")
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("serve Heimdall: %w", err)
	}
	h := &demoHeimdall{
		url:  &url.URL{Scheme: "https", Host: l.Addr().String(), Path: "/config"},
		mesh: m,
		token: m.Mint(minimesh.Claims{
			ServiceAccount: demoAccount, Namespace: demoNamespace, Audience: demoAudience, TTL: demoTokenTTL,
		}),
	}
	l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveHTTP(ctx, l, heimdall.Handler(h.lookup), log) })
	h.stop = func() {
		cancel()
		_ = g.Wait()
	}
	return h, nil
}

// lookup tells what an access token is good for.
func (h *demoHeimdall) lookup(_ context.Context, token string) (heimdall.Enrollment, error) {
	account, namespace, err := h.mesh.VerifyToken(token, demoAudience)
	if err != nil {
		return heimdall.Enrollment{}, fmt.Errorf("%w: %w", heimdall.ErrUnauthorized, err)
	}
	return heimdall.Enrollment{
		IstiodAddress: h.mesh.IstiodAddr().String(),
		Roots:         h.mesh.RootPEM(),
		Token:         heimdall.NewSecret(h.mesh.MintToken(account, namespace)),
		ClusterID:     h.mesh.ClusterID(),
		TrustDomain:   h.mesh.TrustDomain(),
		Namespace:     namespace, ServiceAccount: account, WorkloadName: account,
		Labels:  map[string]string{"app": account, "security.istio.io/tlsMode": "istio"},
		Network: "", DNSDomain: "cluster.local",
	}, nil
}
