// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/tls"
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

// joinControlPlane builds the channel to istiod and the two that use it.
func (m *Mesh) joinControlPlane() (err error) {
	m.conn, err = identity.Dial(identity.IstiodConfig{
		Address: m.cfg.Istiod, ServerName: m.cfg.ServerName, Roots: m.cfg.Roots, Token: m.cfg.Token,
		Certificate: func() *tls.Certificate { return m.ids.ClientCertificate() }, ClusterID: m.cfg.Node.ClusterID, Dialer: m.cfg.Dial,
		Logger: m.log.With("component", "istiod"),
	})
	if err != nil {
		return fmt.Errorf("dial istiod %q: %w", m.cfg.Istiod, err)
	}
	m.ids, err = identity.New(identity.Config{
		CA: identity.NewIstioCA(m.conn), TTL: m.cfg.CertTTL, Logger: m.log.With("component", "identity"),
	})
	if err != nil {
		return err
	}
	s := &sink{catalog: m.catalog, published: m.bell.ring}
	m.xds, err = xds.New(xds.Config{
		Conn: m.conn, Node: xds.NewNode(m.cfg.Node), Sink: s,
		Logger: m.log.With("component", "xds"),
	})
	if err != nil {
		return err
	}
	s.watch = m.xds.Watch
	return nil
}

// A sink carries the resources of each response into the catalog. It is
// called by the goroutine of the xDS client only, which makes that the
// catalog's one writer.
type sink struct {
	catalog *catalog.Catalog
	watch   func(typeURL string, names []string)
	// published is called when there is a new Snapshot.
	published func()
}

// Update implements xds.Sink.
func (s *sink) Update(r xds.Response) []xds.Rejected {
	before := s.catalog.Snapshot()
	var bad []xds.Rejected
	switch r.TypeURL {
	case xds.ClusterType:
		set := decode(r, &bad, resource.DecodeCluster)
		s.catalog.SetClusters(set, r.Removed)
		s.watch(xds.EndpointType, s.catalog.EDSNames())
	case xds.EndpointType:
		set := decode(r, &bad, resource.DecodeEndpoints)
		s.catalog.SetEndpoints(set, r.Removed)
		s.catalog.Reject(names(bad), nil)
	case xds.ListenerType:
		set := decode(r, &bad, resource.DecodeListener)
		s.catalog.SetListeners(set, r.Removed)
		s.watch(xds.RouteType, s.catalog.RDSNames())
	case xds.RouteType:
		set := decode(r, &bad, resource.DecodeRoutes)
		s.catalog.SetRoutes(set, r.Removed)
		s.catalog.Reject(nil, names(bad))
	case xds.NameTableType:
		if set := decode(r, &bad, resource.DecodeNameTable); len(set) > 0 {
			s.catalog.SetNames(set[len(set)-1])
		} else if len(bad) == 0 {
			s.catalog.SetNames(&resource.NameTable{})
		}
	case xds.AddressType:
		s.addresses(r, &bad)
	}
	// Endpoints take effect without it, but may be what a Snapshot waits for.
	if s.catalog.Publish(); s.catalog.Snapshot() != before {
		s.published()
	}
	return bad
}

func (s *sink) addresses(r xds.Response, bad *[]xds.Rejected) {
	var workloads []*resource.Workload
	var services []*resource.WDSService
	for _, res := range r.Resources {
		w, svc, err := resource.DecodeAddress(res.Body)
		switch {
		case err != nil:
			*bad = append(*bad, xds.Rejected{Name: res.Name, Err: err})
		case w != nil:
			workloads = append(workloads, w)
		case svc != nil:
			services = append(services, svc)
		}
	}
	s.catalog.SetAddresses(workloads, services, r.Removed)
}

func names(bad []xds.Rejected) []string {
	out := make([]string, len(bad))
	for i, b := range bad {
		out[i] = b.Name
	}
	return out
}

// decode keeps what can be read and names what cannot.
func decode[T any](r xds.Response, bad *[]xds.Rejected, f func(*anypb.Any) (T, error)) []T {
	good := make([]T, 0, len(r.Resources))
	for _, res := range r.Resources {
		v, err := f(res.Body)
		if err != nil {
			*bad = append(*bad, xds.Rejected{Name: res.Name, Err: err})
			continue
		}
		good = append(good, v)
	}
	return slices.Clip(good)
}
