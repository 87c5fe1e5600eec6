// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

const (
	// DefaultServerName is istiod's name where its address does not tell it.
	DefaultServerName = "istiod.istio-system.svc"

	// istiod sends away clients that ping more often than every 15 s.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// connectTimeout bounds TCP and TLS together.
	connectTimeout = 10 * time.Second
	// tokenTimeout bounds the source of tokens, which may ask a server: a call
	// for configuration has no deadline of its own. It leaves time to connect
	// by certificate.
	tokenTimeout = 5 * time.Second
	// Delays between connections, as package xds has between streams.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = 15 * time.Second
	// h2Window is the initial window of a stream and of the connection, as
	// Istio's agent sets it: the first push of a large mesh is megabytes.
	h2Window = 1 << 20
	// maxMessage bounds one answer, as ztunnel does; see package xds.
	maxMessage = 200 << 20
)

// An IstiodConfig says how to reach and to trust istiod, and who we are.
type IstiodConfig struct {
	// Address is what to dial, HOST:PORT: istiod itself (15012), a gateway
	// that passes TLS through to it, or a forwarded port.
	Address string
	// ServerName is the name in istiod's certificate. Default: the host of
	// Address, or [DefaultServerName] if that is an IP address or localhost.
	ServerName string
	// Roots returns the PEM roots to trust; it is asked at each handshake.
	Roots func() ([]byte, error)
	// Token returns the bearer token to authenticate with; it is asked at
	// each call. nil: there are none.
	Token func(ctx context.Context) (string, error)
	// Certificate returns the certificate to authenticate with when there is
	// no usable token; nil, or returning nil: there is none.
	Certificate func() *tls.Certificate
	// ClusterID tells istiod which cluster's tokens ours is one of.
	ClusterID string
	// Dialer opens connections; it must keep them off our own tunnel.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger hears of changes in how we authenticate. Default: none.
	Logger *slog.Logger
}

// Dial makes the channel to istiod. Nothing is dialled before its first use,
// and it reconnects by itself. Errors of calls on it are of the kinds that
// this package exports. The caller closes it.
func Dial(cfg IstiodConfig) (*grpc.ClientConn, error) {
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("istiod address %q: %w", cfg.Address, err)
	}
	if cfg.Roots == nil || cfg.Dialer == nil {
		return nil, errors.New("istiod: no roots or no dialer")
	}
	if cfg.ServerName == "" {
		cfg.ServerName = serverName(host)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	creds := &credential{cfg: cfg}
	return grpc.NewClient("passthrough:///"+cfg.Address,
		grpc.WithAuthority(cfg.ServerName),
		grpc.WithTransportCredentials(creds),
		grpc.WithPerRPCCredentials(creds),
		grpc.WithContextDialer(creds.dial),
		grpc.WithNoProxy(), // the dialer alone decides how connections are made
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(creds.unary),
		grpc.WithChainStreamInterceptor(creds.stream),
		grpc.WithInitialWindowSize(h2Window),
		grpc.WithInitialConnWindowSize(h2Window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectMin, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithUserAgent("nasp-tun"),
	)
}

// serverName returns the name to expect of istiod at a host, as Istio's agent
// does: a forwarded port is on localhost, and no certificate says so.
func serverName(host string) string {
	if _, err := netip.ParseAddr(host); err == nil || strings.Contains(host, "localhost") {
		return DefaultServerName
	}
	return host
}

// verifier returns the TLS config for one handshake with istiod.
func (cfg *IstiodConfig) verifier(present *tls.Certificate) (*tls.Config, error) {
	pem, err := cfg.Roots()
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	roots, err := parsePEM([][]byte{pem}, maxRoots)
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	if present == nil {
		present = &tls.Certificate{} // which is none
	}
	return &tls.Config{
		ServerName: cfg.ServerName,
		RootCAs:    pool,
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return present, nil
		},
	}, nil
}
