// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/mesh"
	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

// An enrolment is the workload's place in the mesh, and renews what of it does
// not last: the token, and the roots that istiod is verified with. It lives as
// long as its source does. heimdall.Source is one.
type enrolment interface {
	Enroll(context.Context) (heimdall.Enrollment, error)
	Token(context.Context) (string, error)
	Roots() ([]byte, error)
	Run(context.Context) error
}

// errNoMesh is a command line that names no mesh to join.
var errNoMesh = errors.New("no mesh is named")

// newEnrolment chooses the source. It reads standard input, if that is where a
// token is, and nothing else yet.
func newEnrolment(cfg *EnrolConfig, dial dialFunc, stdin io.Reader, log *slog.Logger) (enrolment, error) {
	switch {
	case cfg.Heimdall != nil:
		return heimdallEnrolment(cfg, dial, stdin, log)
	case cfg.Bundle != "":
		return bundleEnrolment(cfg, dial)
	case cfg.Istiod != "":
		return flagEnrolment(cfg, dial, stdin)
	}
	return nil, errNoMesh
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

func heimdallEnrolment(cfg *EnrolConfig, dial dialFunc, stdin io.Reader, log *slog.Logger) (enrolment, error) {
	name, err := instanceName("laptop")
	if err != nil {
		return nil, err
	}
	client := heimdall.ClientConfig{
		URL: cfg.Heimdall.String(), Dial: dial, Name: name, Version: readBuildInfo().Version,
	}
	if cfg.HeimdallCA != "" {
		client.Roots = func() ([]byte, error) { return os.ReadFile(cfg.HeimdallCA) }
	}
	c, err := heimdall.NewClient(client)
	if err != nil {
		return nil, err
	}
	source := heimdall.SourceConfig{Fetch: c.Fetch, Logger: log.With("component", "heimdall")}
	switch {
	case !cfg.Token.IsZero():
		source.Token = cfg.Token
	case cfg.TokenFile == "-":
		source.Token, err = readToken(stdin)
	case cfg.TokenFile != "":
		source.TokenFile = cfg.TokenFile
	default:
		err = configErrorf("no token for Heimdall: give --token-file")
	}
	if err != nil {
		return nil, err
	}
	return heimdall.NewSource(source)
}

// maxToken bounds what is read as a token: they have some kilobytes.
const maxToken = 64 << 10

// readToken takes a token from standard input.
func readToken(stdin io.Reader) (heimdall.Secret, error) {
	text, err := io.ReadAll(io.LimitReader(stdin, maxToken))
	if err != nil {
		return heimdall.Secret{}, fmt.Errorf("read the token from standard input: %w", err)
	}
	token := heimdall.NewSecret(string(text))
	if token.IsZero() {
		return token, configErrorf("standard input holds no token")
	}
	return token, nil
}

// A flagSource is the enrolment that needs no server: the flags, and two files
// that somebody else keeps fresh, as kubelet does or `istioctl x workload`.
type flagSource struct {
	cfg   *EnrolConfig
	dial  dialFunc
	token func() (heimdall.Secret, error)
}

func flagEnrolment(cfg *EnrolConfig, dial dialFunc, stdin io.Reader) (enrolment, error) {
	s := &flagSource{cfg: cfg, dial: dial}
	switch {
	case cfg.IstiodCA == "":
		return nil, configErrorf("--istiod needs --istiod-ca, the root certificates of the mesh")
	case cfg.Namespace == "":
		return nil, configErrorf("--istiod needs --namespace, that of the workload")
	case cfg.IstioTokenFile == "":
		return nil, configErrorf("--istiod needs --istio-token-file, a service account token for the audience istio-ca")
	case cfg.IstioTokenFile == "-":
		token, err := readToken(stdin)
		if err != nil {
			return nil, err
		}
		s.token = func() (heimdall.Secret, error) { return token, nil }
	default:
		s.token = func() (heimdall.Secret, error) { return heimdall.ReadToken(cfg.IstioTokenFile) }
	}
	return s, nil
}

// Enroll implements enrolment.
func (s *flagSource) Enroll(ctx context.Context) (heimdall.Enrollment, error) {
	c := s.cfg
	e := heimdall.Enrollment{
		IstiodAddress: c.Istiod, IstiodServerName: c.IstiodServerName,
		ClusterID: c.ClusterID, MeshID: c.MeshID, Revision: c.Revision, Network: c.Network,
		Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, WorkloadName: cmp.Or(c.Workload, c.ServiceAccount),
		DNSDomain: c.DNSDomain, InstanceIPs: c.InstanceIPs,
	}
	if e.IstiodServerName == "" {
		e.IstiodServerName = "istiod.istio-system.svc"
		if c.Revision != "" && c.Revision != "default" {
			e.IstiodServerName = "istiod-" + c.Revision + ".istio-system.svc"
		}
	}
	var err error
	if e.Roots, err = s.Roots(); err != nil {
		return e, err
	}
	if e.Token, err = s.token(); err != nil {
		return e, err
	}
	if len(e.InstanceIPs) == 0 {
		own, err := addressTowards(ctx, s.dial, c.Istiod)
		if err != nil {
			// Without a way there is no address, but the way is what is missing.
			return e, &joinError{c.Istiod, fmt.Errorf("%w: %w", identity.ErrUnreachable, err)}
		}
		e.InstanceIPs = []netip.Addr{own}
	}
	if err := e.Validate(); err != nil {
		return e, &configError{err}
	}
	return e, nil
}

// Token implements enrolment.
func (s *flagSource) Token(context.Context) (string, error) {
	t, err := s.token()
	return t.Reveal(), err
}

// Roots implements enrolment.
func (s *flagSource) Roots() ([]byte, error) {
	text, err := os.ReadFile(s.cfg.IstiodCA)
	if err != nil {
		return nil, fmt.Errorf("read the roots of the mesh: %w", err)
	}
	if b, _ := pem.Decode(text); b == nil {
		return nil, configErrorf("read the roots of the mesh: %s: no certificate in it", s.cfg.IstiodCA)
	}
	return text, nil
}

// Run implements enrolment. The files are read whenever they are needed.
func (s *flagSource) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// meshConfig enrols and says how the mesh is joined.
func meshConfig(ctx context.Context, source enrolment, cfg *EnrolConfig) (mesh.Config, error) {
	e, err := source.Enroll(ctx)
	if err != nil {
		return mesh.Config{}, err
	}
	name, err := instanceName(cmp.Or(e.WorkloadName, e.ServiceAccount))
	if err != nil {
		return mesh.Config{}, err
	}
	labels := maps.Clone(e.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	for _, l := range cfg.Labels {
		labels[l.key] = l.value
	}
	addresses := e.InstanceIPs
	if len(cfg.InstanceIPs) > 0 {
		addresses = cfg.InstanceIPs
	}
	return mesh.Config{
		Istiod: e.IstiodAddress, ServerName: e.IstiodServerName, Roots: source.Roots, Token: source.Token,
		Node: xds.NodeConfig{
			Name: name, Namespace: e.Namespace, ServiceAccount: e.ServiceAccount, WorkloadName: e.WorkloadName,
			Owner: e.Owner, Addresses: addresses, DNSDomain: e.Namespace + ".svc." + cmp.Or(e.DNSDomain, "cluster.local"),
			ClusterID: e.ClusterID, Network: e.Network, MeshID: e.MeshID, IstioVersion: e.IstioVersion,
			Labels: labels, AutoRegisterGroup: e.AutoRegisterGroup,
		},
	}, nil
}

// instanceName tells this instance of a workload from others: laptops share a
// workload, and sessions a laptop.
func instanceName(workload string) (string, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return "", err
	}
	hostname, _, _ = strings.Cut(strings.ToLower(hostname), ".")
	return fmt.Sprintf("%s-%s-%d", workload, hostname, os.Getpid()), nil
}

// addressTowards returns the address of this machine that leads to a peer.
// Connecting a datagram socket sends nothing.
func addressTowards(ctx context.Context, dial dialFunc, peer string) (netip.Addr, error) {
	c, err := dial(ctx, "udp", peer)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%T is no address of a datagram socket", c.LocalAddr())
	}
	return local.AddrPort().Addr().Unmap().WithZone(""), nil
}
