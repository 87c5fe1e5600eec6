// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"net"
	"net/netip"
	"strconv"
	"time"
)

// Discovery is how a cluster gets its endpoints.
type Discovery uint8

// The kinds of clusters.
const (
	Static      Discovery = iota
	EDS                   // served by name over xDS
	StrictDNS             // every address of each name is an endpoint
	LogicalDNS            // the first address of the name, looked up again for new connections
	OriginalDst           // the address that the client dialled
)

func (d Discovery) String() string {
	return [...]string{"STATIC", "EDS", "STRICT_DNS", "LOGICAL_DNS", "ORIGINAL_DST"}[d]
}

// A Cluster is a group of endpoints and the way to talk to them.
type Cluster struct {
	Name      string
	Discovery Discovery
	// EDSName is the resource that holds the endpoints of an EDS cluster.
	EDSName string
	// Endpoints are the inline ones of Static and DNS clusters.
	Endpoints      *Endpoints
	ConnectTimeout time.Duration
	Balance        BalanceConfig
	// Transports is walked in order; the first whose Match is contained in
	// the endpoint's metadata wins, else Transport.
	Transports []TransportMatch
	Transport  Transport
	HTTP       HTTPVersion
	// Breakers are the default-priority limits.
	Breakers    Breakers
	IdleTimeout time.Duration // of pooled HTTP connections; 0: the default
	KeepAlive   *KeepAlive    // TCP keepalive; nil: the system's
	// MaxRequestsPerConnection ends a pooled connection; 0: never.
	MaxRequestsPerConnection uint32
	DNSRefresh               time.Duration
	DNSFamily                DNSFamily // of the addresses of DNS clusters
	Istio                    IstioMeta
	Ignored                  []string
}

// IstioMeta is what istiod says of a cluster in its metadata.
type IstioMeta struct {
	Services     []ServiceRef
	Subset       string
	ALPNOverride string // "false" keeps the cluster's own ALPN
	External     bool
}

// Service returns the first service of the cluster, or a zero value.
func (m *IstioMeta) Service() ServiceRef {
	if len(m.Services) == 0 {
		return ServiceRef{}
	}
	return m.Services[0]
}

// ServiceRef names a service of the mesh.
type ServiceRef struct{ Host, Name, Namespace string }

// DNSFamily says which addresses of a name are used.
type DNSFamily uint8

// The choices of Envoy's dns_lookup_family.
const (
	DNSAuto        DNSFamily = iota // IPv6; IPv4 if there is none
	DNSV4Only                       //
	DNSV6Only                       //
	DNSV4Preferred                  // IPv4; IPv6 if there is none
	DNSAll                          // both
)

// HTTPVersion is the protocol spoken to the upstream of a cluster.
type HTTPVersion uint8

// The versions.
const (
	HTTP1      HTTPVersion = iota
	HTTP2                  // explicit h2
	Downstream             // whatever the client spoke
	AutoHTTP               // by ALPN
)

func (v HTTPVersion) String() string {
	return [...]string{"http/1", "http/2", "downstream", "auto"}[v]
}

// Policy is a load-balancing policy.
type Policy uint8

// The policies.
const (
	LeastRequest Policy = iota
	RoundRobin
	Random
	RingHash // not supported yet: falls back to Random, listed in Ignored
	Maglev   // likewise
	ClusterProvided
)

func (p Policy) String() string {
	return [...]string{"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "RING_HASH", "MAGLEV", "CLUSTER_PROVIDED"}[p]
}

// BalanceConfig configures the choice of an endpoint.
type BalanceConfig struct {
	Policy           Policy
	ChoiceCount      uint32  // LeastRequest; 0: 2
	ActiveBias       float64 // LeastRequest with weights; 0: 1
	IgnoreLoad       bool    // LeastRequest with weights: Envoy's active_request_bias of 0
	LocalityWeighted bool
	// PanicThreshold is the percentage of healthy hosts under which health
	// is disregarded; istiod sets 0, Envoy's default is 50.
	PanicThreshold float64
	// Overprovisioning is Envoy's factor in percent; 0: 140.
	Overprovisioning uint32
}

// Breakers bounds what a cluster may have at one time.
type Breakers struct {
	MaxConnections, MaxPending, MaxRequests, MaxRetries uint32
}

// KeepAlive are the TCP keepalive settings of upstream sockets.
type KeepAlive struct {
	Idle, Interval time.Duration
	Probes         int
}

// TransportMatch is one entry of transport_socket_matches.
type TransportMatch struct {
	Name      string
	Match     map[string]string
	Transport Transport
}

// TransportKind is a way to secure a connection.
type TransportKind uint8

// The kinds of transports.
const (
	Plain       TransportKind = iota
	IstioMTLS                 // the node's own certificate, the mesh's roots
	HBONE                     // not built yet: refused by name
	Unsupported               // TLS origination and others: refused by name
)

func (k TransportKind) String() string {
	switch k {
	case Plain:
		return "plaintext"
	case IstioMTLS:
		return "mTLS"
	case HBONE:
		return "HBONE"
	}
	return "unsupported"
}

// Transport says how a connection to an endpoint is secured.
type Transport struct {
	Kind TransportKind
	// Name is Envoy's name of the match, or of the socket, for messages.
	Name string
	SNI  string
	// SANs are the SPIFFE IDs, one of which the peer must prove. Empty: any
	// identity of the mesh's roots.
	SANs []SANMatch
	ALPN []string
}

// SANMatch is a condition on a subject alternative name (URI or DNS).
type SANMatch struct {
	Exact, Prefix, Suffix string
}

// Matches reports whether a SAN meets the condition.
func (m SANMatch) Matches(san string) bool {
	switch {
	case m.Exact != "":
		return san == m.Exact
	case m.Prefix != "":
		return len(san) >= len(m.Prefix) && san[:len(m.Prefix)] == m.Prefix
	case m.Suffix != "":
		return len(san) >= len(m.Suffix) && san[len(san)-len(m.Suffix):] == m.Suffix
	}
	return false
}

// Health of an endpoint, as the control plane sees it.
type Health uint8

// The states. Unknown counts as healthy, Degraded is used when no healthy
// endpoint is left, Draining only for connections that exist.
const (
	Healthy Health = iota
	Degraded
	Unhealthy
	Draining
)

func (h Health) String() string {
	return [...]string{"healthy", "degraded", "unhealthy", "draining"}[h]
}

// Endpoints is the set of endpoints of one cluster.
type Endpoints struct {
	Name             string // the EDS resource, or the cluster
	Localities       []Locality
	Overprovisioning uint32 // percent; 0: the default
	Ignored          []string
}

// Total counts the endpoints, Healthy those that the control plane calls so.
func (e *Endpoints) Total() (healthy, total int) {
	if e == nil {
		return 0, 0
	}
	for _, l := range e.Localities {
		for _, p := range l.Endpoints {
			total++
			if p.Health == Healthy {
				healthy++
			}
		}
	}
	return healthy, total
}

// A Locality groups endpoints by place, priority and weight.
type Locality struct {
	Region, Zone, SubZone string
	Priority              uint32
	Weight                uint32 // 0: not set
	Endpoints             []*Endpoint
}

// An Endpoint is one address of a cluster. It is immutable.
type Endpoint struct {
	// Address is set unless the endpoint is a name to be looked up.
	Address  netip.AddrPort
	Hostname string // with Port, for DNS clusters
	Port     uint16
	Weight   uint32 // at least 1
	Health   Health
	// Match is the metadata envoy.transport_socket_match.
	Match map[string]string
	// Tunnel is set for endpoints that only HBONE reaches (an internal
	// address with a tunnel listener); its value names it.
	Tunnel string
	// Workload is Istio's "name;namespace;canonical;revision;cluster".
	Workload string
}

// Key identifies the endpoint within its cluster across updates.
func (e *Endpoint) Key() string {
	if !e.Address.IsValid() {
		return net.JoinHostPort(e.Hostname, strconv.Itoa(int(e.Port)))
	}
	return e.Address.String()
}

// TransportFor returns the transport with which an endpoint is reached.
func (c *Cluster) TransportFor(e *Endpoint) Transport {
	if e.Tunnel != "" {
		return Transport{Kind: HBONE, Name: e.Tunnel}
	}
	for i := range c.Transports {
		if contains(e.Match, c.Transports[i].Match) {
			return c.Transports[i].Transport
		}
	}
	return c.Transport
}

func contains(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}
