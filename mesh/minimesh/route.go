// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"maps"
	"net/http"
	"slices"
	"strconv"

	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previouspb "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// maxDirectBody is istiod's bound on the body of a direct answer.
	maxDirectBody = 1 << 20
	// The default retries of the mesh.
	retryOn       = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
	retries       = 2
	retryAttempts = 5 // at choosing a host that was not tried
)

// routes makes one configuration for each port that HTTP services share, and
// one for each sniffed port.
func (w *world) routes(dnsNamespace string) []*routepb.RouteConfiguration {
	shared := map[uint16]*routepb.RouteConfiguration{}
	var out []*routepb.RouteConfiguration
	for i := range w.services {
		s := &w.services[i]
		for _, p := range s.Ports {
			switch p.Protocol {
			case HTTP, GRPC:
				r := shared[p.Number]
				if r == nil {
					r = routeConfig(strconv.Itoa(int(p.Number)))
					shared[p.Number] = r
				}
				r.VirtualHosts = append(r.VirtualHosts, virtualHost(s, p, domains(s, dnsNamespace)))
			case Auto:
				r := routeConfig(autoRouteName(s, p))
				// The listener is the service's own, so any Host will do.
				r.VirtualHosts = []*routepb.VirtualHost{virtualHost(s, p, []string{"*"})}
				out = append(out, r)
			case TCP:
			}
		}
	}
	for _, port := range slices.Sorted(maps.Keys(shared)) {
		r := shared[port]
		r.VirtualHosts = append(r.VirtualHosts, w.catchAll())
		out = append(out, r)
	}
	return out
}

func routeConfig(name string) *routepb.RouteConfiguration {
	return &routepb.RouteConfiguration{
		Name:                           name,
		ValidateClusters:               wrapperspb.Bool(false),
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(maxDirectBody),
		IgnorePortInHostMatching:       true,
	}
}

// domains are the names that a client of a namespace may put into Host. The
// bare name exists for those whose search domain makes it one.
func domains(s *placed, dnsNamespace string) []string {
	host, short := s.host(), s.Name+"."+s.Namespace
	out := []string{host, host + "."}
	if dnsNamespace == s.Namespace {
		out = append(out, s.Name)
	}
	out = append(out, short, short+".svc")
	if s.Headless {
		out = append(out, "*."+host, "*."+short, "*."+short+".svc")
	}
	for _, a := range s.VIPs {
		out = append(out, domainIP(a))
	}
	return out
}

func virtualHost(s *placed, p Port, domains []string) *routepb.VirtualHost {
	name := autoRouteName(s, p)
	return &routepb.VirtualHost{
		Name:    name,
		Domains: domains,
		Routes: []*routepb.Route{{
			Name:      "default",
			Match:     anyPath(),
			Decorator: &routepb.Decorator{Operation: name + "/*"},
			Action: &routepb.Route_Route{Route: &routepb.RouteAction{
				ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: clusterName(s, p)},
				Timeout:          durationpb.New(0),
				//lint:ignore SA1019 istiod still sends the old field
				MaxGrpcTimeout: durationpb.New(0),
				RetryPolicy:    retryPolicy(),
			}},
		}},
		IncludeRequestAttemptCount: true,
	}
}

func retryPolicy() *routepb.RetryPolicy {
	return &routepb.RetryPolicy{
		RetryOn:                       retryOn,
		NumRetries:                    wrapperspb.UInt32(retries),
		HostSelectionRetryMaxAttempts: retryAttempts,
		RetryHostPredicate: []*routepb.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routepb.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: packed(&previouspb.PreviousHostsPredicate{}),
			},
		}},
	}
}

// catchAll is for hosts that the mesh does not know.
func (w *world) catchAll() *routepb.VirtualHost {
	h := &routepb.VirtualHost{Domains: []string{"*"}, IncludeRequestAttemptCount: true}
	r := &routepb.Route{Match: anyPath()}
	if w.registryOnly {
		h.Name, r.Name = "block_all", "block_all"
		r.Action = &routepb.Route_DirectResponse{DirectResponse: &routepb.DirectResponseAction{Status: http.StatusBadGateway}}
	} else {
		h.Name, r.Name = "allow_any", "allow_any"
		r.Action = &routepb.Route_Route{Route: &routepb.RouteAction{
			ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: passthroughCluster},
			Timeout:          durationpb.New(0),
			//lint:ignore SA1019 istiod still sends the old field
			MaxGrpcTimeout: durationpb.New(0),
		}}
	}
	h.Routes = []*routepb.Route{r}
	return h
}

func anyPath() *routepb.RouteMatch {
	return &routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{Prefix: "/"}}
}
