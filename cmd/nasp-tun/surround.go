// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// What the host around CMD's private network contributes to it: names, IPv6,
// and things that the user should be told.

// localNames are the names of nasp-tun itself.
func (t *tunnel) localNames() map[string]netip.Addr {
	if t.cfg.Exec.NoHostLoopback {
		return nil
	}
	return map[string]netip.Addr{host.HostLoopbackName: host.HostLoopbackAddr}
}

// followIPv6 keeps CMD's IPv6 as wide as the host's: a program turns to IPv4 at
// once when the kernel says that there is no route, and only after a while when
// a connection is not answered. Addresses of the mesh have a route in any case.
func (t *tunnel) followIPv6(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return t.dialer.WatchIPv6(ctx, func(on bool) {
			if err := t.world.SetIPv6(on); err != nil {
				t.log.Warn("cannot follow the host's IPv6", "err", err)
			}
		})
	})
	g.Go(func() error {
		for {
			published := t.mesh.Published()
			if err := t.world.SetMesh6(t.mesh.Addresses()); err != nil {
				t.log.Warn("cannot route the mesh's IPv6 addresses", "err", err)
			}
			select {
			case <-published:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// warn tells what will surprise the user, once and before CMD starts.
func (t *tunnel) warn() {
	t.told = t.world.Warnings()
	if vars := host.ProxyVars(t.cfg.env.list); len(vars) > 0 && !t.cfg.Exec.NoProxyEnv {
		t.told = append(t.told, fmt.Sprintf("%s is set: a program that heeds it asks the proxy, which goes round the mesh; --no-proxy-env unsets it",
			strings.Join(vars, ", ")))
	}
	for _, name := range slices.Sorted(maps.Keys(host.HostsNames(""))) {
		if t.mesh.Knows(name) {
			t.told = append(t.told, fmt.Sprintf("%s has %s, which is a name of the mesh: the file wins", host.HostsPath, name))
		}
	}
	for _, w := range t.told {
		fmt.Fprintf(t.stderr, "nasp-tun: warning: %s\n", w)
	}
}

func (t *tunnel) sayOrphans(status host.ExitStatus) {
	if n := status.Orphans; n > 0 {
		fmt.Fprintf(t.stderr, "nasp-tun: %s left %d %s running, now without a network; --linger waits for them\n",
			t.args[0], n, plural(n, "process", "processes"))
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
