// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// keyLife outlives any run.
const keyLife = 24 * time.Hour

// serveMesh is the control plane of the run. It writes the keys of the two
// Envoys and, when all is ready, the flags with which nasp-tun joins.
func serveMesh(ctx context.Context, dir string) error {
	server := netip.AddrPortFrom(netip.MustParseAddr(serverAddress), serverPort)
	m, err := minimesh.New(minimesh.Config{Services: []minimesh.Service{{
		Name: "iperf", Namespace: "bench",
		Ports:     []minimesh.Port{{Number: iperfPort, Protocol: minimesh.TCP}},
		Endpoints: []minimesh.Endpoint{{External: map[uint16]netip.AddrPort{iperfPort: server}}},
	}}})
	if err != nil {
		return err
	}
	if err := m.Start(); err != nil {
		return err
	}
	defer m.Close()
	for _, k := range []struct{ name, id string }{
		{"server", m.SPIFFE("bench", "default")},
		{"client", m.SPIFFE("bench", "client")},
	} {
		pair, err := m.IssueSPIFFE(k.id, keyLife)
		if err != nil {
			return err
		}
		// Readable for all: the sidecar is another user, and the folder is
		// removed at the end.
		if err := errors.Join(
			os.WriteFile(filepath.Join(dir, k.name+".pem"), pair.Chain, 0o644),
			os.WriteFile(filepath.Join(dir, k.name+".key"), pair.Key, 0o644),
		); err != nil {
			return err
		}
	}
	roots, token := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "token")
	if err := errors.Join(
		os.WriteFile(roots, m.RootPEM(), 0o644),
		os.WriteFile(token, []byte(m.Mint(minimesh.Claims{ServiceAccount: "client", Namespace: "bench", TTL: keyLife})), 0o600),
	); err != nil {
		return err
	}
	flags := []string{
		"--istiod=" + m.IstiodAddr().String(), "--istiod-server-name=istiod.istio-system.svc",
		"--istiod-ca=" + roots, "--istio-token-file=" + token, "--cluster-id=" + m.ClusterID(),
		"--namespace=bench", "--service-account=client", "--workload=bench",
	}
	tmp := filepath.Join(dir, "flags.tmp")
	if err := os.WriteFile(tmp, []byte(strings.Join(flags, "\n")), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "flags")); err != nil {
		return fmt.Errorf("tell the flags: %w", err)
	}
	<-ctx.Done()
	return nil
}
