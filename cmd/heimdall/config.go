// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// A config is the command line.
type config struct {
	kubeconfig, context string

	namespaces     []string
	anyAccount     bool
	leaseNamespace string

	istioNamespace, revision          string
	gatewayNamespace, gatewaySelector string
	istiodAddress, clusterID          string

	listen, listenInternal   string
	certFile, keyFile        string
	tlsSecret                string
	secretNamespace, secret  string // the two parts of tlsSecret
	sourceRate, tokenRate    float64
	drainDelay               time.Duration
	logLevel                 slog.Level
	logFormat, logLevelValue string
}

var (
	errNamespaces  = errors.New("--namespaces: at least one is needed")
	errCertificate = errors.New("either --tls-cert-file and --tls-key-file or --tls-secret is needed")
	errSecretName  = errors.New("--tls-secret: NAMESPACE/NAME is needed")
	errLogFormat   = errors.New("--log-format: text or json")
)

// parse reads and checks a command line. What is wrong is usage, not failure.
func parse(args []string, usage io.Writer) (config, error) {
	var c config
	f := pflag.NewFlagSet("heimdall", pflag.ContinueOnError)
	f.SetOutput(usage)
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "reach the API server by this file instead of from inside a pod")
	f.StringVar(&c.context, "context", "", "context of the kubeconfig")
	f.StringSliceVar(&c.namespaces, "namespaces", nil, "namespaces whose WorkloadGroups are served")
	f.BoolVar(&c.anyAccount, "allow-any-account", false, "take accounts without the annotation heimdall.nasp.k8s.cisco.com/allowed=true:\nwhoever may edit WorkloadGroups then has every account of the namespace")
	f.StringVar(&c.leaseNamespace, "lease-namespace", "", "where replicas elect the one that writes Secrets; empty: there is one replica")
	f.StringVar(&c.istioNamespace, "istio-namespace", "istio-system", "namespace of istiod")
	f.StringVar(&c.revision, "revision", "default", "revision of istiod")
	f.StringVar(&c.gatewayNamespace, "gateway-namespace", "", "namespace of the east-west gateway's Service; empty: that of istiod")
	f.StringVar(&c.gatewaySelector, "gateway-selector", "istio=eastwestgateway", "labels of the east-west gateway's Service")
	f.StringVar(&c.istiodAddress, "istiod-address", "", "host:port at which laptops reach istiod; empty: that of the gateway")
	f.StringVar(&c.clusterID, "cluster-id", "", "istiod's name of this cluster; empty: what its injector says")
	f.StringVar(&c.listen, "listen", ":16443", "address of the server for laptops, HTTPS")
	f.StringVar(&c.listenInternal, "listen-internal", ":8080", "address of /healthz, /readyz and /metrics, HTTP")
	f.StringVar(&c.certFile, "tls-cert-file", "", "certificate chain of the server, PEM")
	f.StringVar(&c.keyFile, "tls-key-file", "", "key of the server, PEM")
	f.StringVar(&c.tlsSecret, "tls-secret", "", "Secret of the server's certificate, NAMESPACE/NAME, in place of the files")
	f.Float64Var(&c.sourceRate, "source-rate", 50, "requests a second from one address, which may be a gateway's")
	f.Float64Var(&c.tokenRate, "token-rate", 2, "requests a second with one access token")
	f.DurationVar(&c.drainDelay, "drain-delay", 5*time.Second, "how long to serve after readiness has ended")
	f.StringVar(&c.logLevelValue, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&c.logFormat, "log-format", "json", "text or json")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return c, c.check()
}

func (c *config) check() error {
	if err := c.logLevel.UnmarshalText([]byte(c.logLevelValue)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		return errLogFormat
	}
	if len(c.namespaces) == 0 {
		return errNamespaces
	}
	files := c.certFile != "" && c.keyFile != ""
	if files == (c.tlsSecret != "") || (c.certFile != "") != (c.keyFile != "") {
		return errCertificate
	}
	if c.tlsSecret == "" {
		return nil
	}
	var ok bool
	if c.secretNamespace, c.secret, ok = strings.Cut(c.tlsSecret, "/"); !ok || c.secretNamespace == "" || c.secret == "" {
		return errSecretName
	}
	return nil
}
