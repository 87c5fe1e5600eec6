// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"google.golang.org/protobuf/types/known/anypb"
)

// The types of resource that istiod serves to a sidecar-like node.
const (
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	NameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	AddressType   = "type.googleapis.com/istio.workload.Address"
)

// A Type is one kind of resource to subscribe to.
type Type struct {
	URL string
	// Wildcard asks for everything that the server has for this node. Without
	// it only the names given to Watch are asked for.
	Wildcard bool
	// Optional marks a type that a server may leave unanswered, as an istiod
	// without ambient does with Address. It is not reported as pending.
	Optional bool
}

// SidecarTypes returns the types that a sidecar-like node consumes, in the
// order in which istiod pushes them: what a resource refers to comes first.
func SidecarTypes() []Type {
	return []Type{
		{URL: ClusterType, Wildcard: true},
		{URL: EndpointType},
		{URL: ListenerType, Wildcard: true},
		{URL: RouteType},
		// A singleton whose name is empty, so it can only be had by wildcard.
		{URL: NameTableType, Wildcard: true},
		{URL: AddressType, Wildcard: true, Optional: true},
	}
}

// A Resource is one named piece of configuration, still encoded.
type Resource struct {
	Name    string
	Version string
	Body    *anypb.Any
}

// A Response is one message of the server: the resources of one type that are
// new or changed, and the names of those that are gone.
type Response struct {
	TypeURL   string
	Resources []Resource
	Removed   []string
	Nonce     string
	Version   string
}

// A Rejected names a resource that the Sink could not use, and why.
type Rejected struct {
	Name string
	Err  error
}

// A Sink receives configuration.
type Sink interface {
	// Update applies the good resources of r and returns the bad ones, for
	// which whatever was applied before stays in force. It is called from one
	// goroutine, in the order of the server, and may call [Client.Watch].
	//
	// After a reconnect a Response may repeat resources that are already
	// applied, and Removed may hold names that were never seen.
	Update(r Response) []Rejected
}
