// SPDX-License-Identifier: Apache-2.0

package catalog_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// TestReadersAndWriter is for the race detector: connections look up while the
// mesh changes, and each finds a whole answer in the Snapshot that it took.
func TestReadersAndWriter(t *testing.T) {
	c := big(t, 20)
	published(t, c)
	var readers, writer sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				s := c.Snapshot()
				walk(t, s, i%20, fmt.Sprintf("svc-%d.testing", i%20), &sniffed)
				s.Echo(vip(i % 20))
				if i%50 == 0 {
					s.Services()
					s.Ignored()
				}
			}
		})
	}
	writer.Go(func() {
		for i := range 200 {
			host := fmt.Sprintf("svc-%d.testing.svc.cluster.local", i%20)
			name := "outbound|80||" + host
			c.SetEndpoints([]*resource.Endpoints{someEndpoints(name, i)}, nil)
			c.SetClusters([]*resource.Cluster{eds(name, host)}, nil)
			c.SetListeners([]*resource.Listener{tcpListener(netip.AddrPortFrom(vip(i%20), 9000).String(), "outbound|9000||"+host)}, nil)
			c.SetAddresses([]*resource.Workload{{UID: "w", Addresses: addr("10.244.0.1"), Unhealthy: i%2 == 0}}, nil, nil)
			c.Publish()
		}
	})
	writer.Wait()
	close(done)
	readers.Wait()
}

// FuzzSnapshot publishes whatever decodes, and asks of it: no listener and no
// route configuration may break what reads them.
func FuzzSnapshot(f *testing.F) {
	listeners, routes := recordedBytes(f, "envoy.config.listener.v3.Listener"), recordedBytes(f, "envoy.config.route.v3.RouteConfiguration")
	for _, l := range listeners {
		f.Add(l, routes[0], "echo.testing:80", "/a?b")
	}
	f.Fuzz(func(t *testing.T, lb, rb []byte, host, path string) {
		c := recorded(t)
		if l, err := resource.DecodeListener(&anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.listener.v3.Listener", Value: lb}); err == nil {
			c.SetListeners([]*resource.Listener{l}, nil)
		}
		if rc, err := resource.DecodeRoutes(&anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", Value: rb}); err == nil {
			c.SetRoutes([]*resource.RouteConfiguration{rc}, nil)
		}
		c.Reject(c.EDSNames(), c.RDSNames())
		s := published(t, c)
		s.Lookup(host)
		for _, dst := range []string{"10.96.158.50:80", "10.96.158.50:9000", "[::]:443", "1.2.3.4:15001"} {
			dst := netip.MustParseAddrPort(dst)
			l := s.Listener(dst)
			if l == nil {
				continue
			}
			l.Inspect()
			chain := l.Match(dst, &catalog.Sniff{Transport: "tls", ServerName: host, Protocols: []string{path}})
			if chain == nil || chain.HTTP == nil {
				continue
			}
			if rt := s.Routes(chain.HTTP); rt != nil {
				if vh, r := rt.Match(&catalog.Request{Host: host, Path: path, Dst: dst}); r != nil && vh == nil {
					t.Error("a route of no host")
				}
			}
		}
		s.Services()
		s.Ignored()
	})
}

func recordedBytes(t testing.TB, typ string) [][]byte {
	return decode(t, typ, func(a *anypb.Any) ([]byte, error) { return a.GetValue(), nil })
}
