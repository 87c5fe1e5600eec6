// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxPriority is Envoy's bound on priorities.
const maxPriority = 128

var (
	assignmentFields = fields("cluster_name", "endpoints", "policy")
	policyFields     = fields("overprovisioning_factor")
	localityFields   = fields("locality", "lb_endpoints", "load_balancing_weight", "priority", "metadata", "proximity")
	lbEndpointFields = fields("endpoint", "health_status", "metadata", "load_balancing_weight")
	endpointFields   = fields("address", "hostname", "health_check_config", "observability_name")
)

// DecodeEndpoints reads a ClusterLoadAssignment.
func DecodeEndpoints(a *anypb.Any) (*Endpoints, error) {
	var cla endpointv3.ClusterLoadAssignment
	if err := unpack("endpoints", a, &cla); err != nil {
		return nil, err
	}
	e, err := decodeEndpoints(&cla)
	if err != nil {
		return nil, fmt.Errorf("decode endpoints %q: %w", cla.GetClusterName(), err)
	}
	return e, nil
}

func decodeEndpoints(cla *endpointv3.ClusterLoadAssignment) (*Endpoints, error) {
	var n notes
	e := &Endpoints{
		Name:             intern(cla.GetClusterName()),
		Overprovisioning: cla.GetPolicy().GetOverprovisioningFactor().GetValue(),
	}
	n.rest("endpoints", cla, assignmentFields)
	n.rest("endpoints.policy", cla.GetPolicy(), policyFields)
	var previous *Endpoint
	for _, l := range cla.GetEndpoints() {
		if l.GetPriority() > maxPriority {
			return nil, fmt.Errorf("priority %d", l.GetPriority())
		}
		n.rest("locality", l, localityFields)
		loc := Locality{
			Region:   intern(l.GetLocality().GetRegion()),
			Zone:     intern(l.GetLocality().GetZone()),
			SubZone:  intern(l.GetLocality().GetSubZone()),
			Priority: l.GetPriority(),
			Weight:   l.GetLoadBalancingWeight().GetValue(),
		}
		if len(l.GetLbEndpoints()) > 0 {
			loc.Endpoints = make([]*Endpoint, 0, len(l.GetLbEndpoints()))
		}
		for _, lb := range l.GetLbEndpoints() {
			ep, err := decodeEndpoint(lb, &n)
			if err != nil {
				return nil, err
			}
			if ep == nil {
				continue
			}
			// Endpoints of a cluster mostly carry the same metadata.
			if previous != nil && maps.Equal(previous.Match, ep.Match) {
				ep.Match = previous.Match
			}
			previous = ep
			loc.Endpoints = append(loc.Endpoints, ep)
		}
		e.Localities = append(e.Localities, loc)
	}
	e.Ignored = n.done()
	return e, nil
}

// decodeEndpoint reads one endpoint; nil for one of a kind that cannot be
// reached, which is noted.
func decodeEndpoint(lb *endpointv3.LbEndpoint, n *notes) (*Endpoint, error) {
	n.rest("endpoint", lb, lbEndpointFields)
	n.rest("endpoint", lb.GetEndpoint(), endpointFields)
	if _, named := lb.GetHostIdentifier().(*endpointv3.LbEndpoint_EndpointName); named {
		return nil, nil
	}
	ep := &Endpoint{
		Hostname: intern(lb.GetEndpoint().GetHostname()),
		Weight:   max(lb.GetLoadBalancingWeight().GetValue(), 1),
		Health:   decodeHealth(lb.GetHealthStatus()),
		Match:    stringMap(lb.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"]),
		Workload: intern(metadata(lb.GetMetadata(), "istio")["workload"].GetStringValue()),
	}
	switch a := lb.GetEndpoint().GetAddress().GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		addr, host, port, err := hostPort(a.SocketAddress)
		if err != nil {
			return nil, err
		}
		if ep.Address = addr; host != "" {
			ep.Hostname, ep.Port = intern(host), port
		}
	case *corev3.Address_EnvoyInternalAddress:
		// Istio's way to say HBONE: the address to connect to lies in
		// endpoint_id, the listener that makes the tunnel is named here.
		ep.Tunnel = intern(a.EnvoyInternalAddress.GetServerListenerName())
		id := a.EnvoyInternalAddress.GetEndpointId()
		if addr, err := netip.ParseAddrPort(id); err == nil {
			ep.Address = addr
		} else {
			ep.Hostname = id
		}
		if ep.Tunnel == "" {
			return nil, errors.New("internal address without a listener")
		}
	case *corev3.Address_Pipe:
		n.add("endpoint.address.pipe")
		return nil, nil
	default:
		return nil, errors.New("endpoint without an address")
	}
	return ep, nil
}

func decodeHealth(s corev3.HealthStatus) Health {
	switch s {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
		return Healthy
	case corev3.HealthStatus_DEGRADED:
		return Degraded
	case corev3.HealthStatus_DRAINING:
		return Draining
	}
	return Unhealthy // TIMEOUT, and states of the future
}
