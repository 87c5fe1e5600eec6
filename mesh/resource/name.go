// SPDX-License-Identifier: Apache-2.0

package resource

import "net/netip"

// A NameTable is what the mesh knows by name (NDS).
type NameTable struct {
	Names   map[string]*Name // by Host
	Ignored []string
}

// A Name is a host of the mesh and its addresses.
type Name struct {
	Host      string // lower case, fully qualified without the last dot
	Addresses []netip.Addr
	// Registry is "Kubernetes" or "External"; short forms exist for the first.
	Registry  string
	ShortName string
	Namespace string
}

// A Workload is what WDS says of one address: an endpoint of the mesh, known
// by network and IP.
type Workload struct {
	UID             string
	Name, Namespace string
	Network         string
	Addresses       []netip.Addr
	ServiceAccount  string
	TrustDomain     string
	// HBONE tells that the workload is reached by a tunnel only.
	HBONE bool
	// Unhealthy tells that the workload is not ready.
	Unhealthy bool
}

// A WDSService is what WDS says of a service; only its addresses matter here.
type WDSService struct {
	Name, Namespace, Hostname string
	Addresses                 []netip.Addr
}
