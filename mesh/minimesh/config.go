// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Config describes a mesh. The zero value is the mesh of the demo: the service
// echo.testing with two endpoints on loopback.
type Config struct {
	// Listen is the address of istiod; "": "127.0.0.1:0".
	Listen netip.AddrPort
	// TrustDomain is the mesh's; "": "cluster.local".
	TrustDomain string
	// ClusterID is the one cluster that tokens are accepted for; "":
	// "Kubernetes".
	ClusterID string
	// Services are those of the start; nil: [DefaultServices].
	Services []Service
	// RegistryOnly closes the way to destinations that the mesh does not
	// know (outboundTrafficPolicy REGISTRY_ONLY). By default they pass.
	RegistryOnly bool
	// Gateway puts every meshed endpoint behind one east-west gateway that
	// routes by SNI, as a client on another network sees a cluster.
	Gateway bool
	// CertTTL bounds the life of client certificates; 0: 24 h.
	CertTTL time.Duration
	// TokenTTL is the life of minted tokens; 0: 1 h.
	TokenTTL time.Duration
	// ConnectionAge ends connections to istiod at this age, as istiod does
	// after 30 minutes; 0: never.
	ConnectionAge time.Duration
	// Logger tells what the mesh does; nil: nobody.
	Logger *slog.Logger
}

// The defaults of a Config and of its parts.
const (
	defaultTrustDomain = "cluster.local"
	defaultClusterID   = "Kubernetes"
	defaultCertTTL     = 24 * time.Hour
	defaultTokenTTL    = time.Hour
	defaultAccount     = "default"
	defaultEndpoints   = 2

	firstPod = 10 // the last byte of the first pod address that is given out
)

// domain is the DNS domain of the cluster. Like a Kubernetes cluster's it has
// nothing to do with the trust domain, although both have the same default.
const domain = "cluster.local"

// A Protocol is what istiod takes a service port for, and what its workloads
// speak there.
type Protocol string

// The protocols.
const (
	HTTP Protocol = "http"
	GRPC Protocol = "grpc"
	TCP  Protocol = "tcp"
	// Auto is a port without a declared protocol: its listener sniffs.
	Auto Protocol = "auto"
)

// An App is what a workload does with a TCP stream.
type App string

// The apps of TCP ports, and of what comes to an Auto port as TCP.
const (
	// Echo returns every byte and ends its side when the client has ended
	// its own.
	Echo App = ""
	// Banner speaks first, as MySQL and SMTP do, then echoes.
	Banner App = "banner"
	// Sink reads to the end and answers with "SIZE SHA256\n".
	Sink App = "sink"
	// Source reads a line with a size and sends that many bytes of
	// [Pattern].
	Source App = "source"
)

// A Port is one port of a service.
type Port struct {
	Number   uint16
	Target   uint16 // the port that the application believes it has; 0: Number
	Protocol Protocol
	App      App
}

// TLSMode says how the workloads of a service may be reached.
type TLSMode string

// The modes.
const (
	// Strict demands mTLS.
	Strict TLSMode = ""
	// Permissive takes mTLS and clear text; clients are told of mTLS.
	Permissive TLSMode = "permissive"
	// Disabled is a workload without a sidecar: clear text only.
	Disabled TLSMode = "disabled"
	// HBONE is announced as reachable by tunnel only. Nothing listens; an
	// endpoint without an address gets one of the pod range 10.244.0.0/24.
	HBONE TLSMode = "hbone"
)

// A Service is a Kubernetes service and the workloads behind it.
type Service struct {
	Name, Namespace string
	// VIPs are its addresses, none when Headless; nil: the next free one
	// of 10.96.0.0/16.
	VIPs     []netip.Addr
	Headless bool
	Ports    []Port
	// Endpoints are its workloads; nil: two that echo. An empty, not nil,
	// slice is a service without endpoints.
	Endpoints []Endpoint
	TLS       TLSMode
	// ServiceAccount of the workloads; "": "default".
	ServiceAccount string
	// SANs are the names that clients are told to accept; nil: the SPIFFE ID
	// of ServiceAccount.
	SANs []string
}

// An Endpoint is one workload.
type Endpoint struct {
	// Name is the pod's; "": the service's name and a number.
	Name string
	// Address to listen on; zero: the address of istiod, with a free port for
	// each port of the service. With an address of its own an endpoint
	// listens on the target ports, as a pod does.
	Address netip.Addr
	// External is where something else listens, by service port: nothing is
	// started for it.
	External map[uint16]netip.AddrPort
	// Identity is the SPIFFE ID that the workload presents; "": the right one.
	Identity  string
	Unhealthy bool
	Fault     Fault
	Weight    uint32 // 0: 1
	Priority  uint32
	// Region, Zone and SubZone are its locality.
	Region, Zone, SubZone string
}

// A Fault is a way in which an endpoint misbehaves.
type Fault string

// The faults.
const (
	NoFault Fault = ""
	// Refuse closes the socket: connection refused.
	Refuse Fault = "refuse"
	// Reset accepts and resets at once.
	Reset Fault = "reset"
	// Silent accepts and neither reads nor writes.
	Silent Fault = "silent"
	// Alert answers a TLS hello with a fatal alert.
	Alert Fault = "alert"
	// Hangup ends the connection after the handshake.
	Hangup Fault = "hangup"
	// Mute neither reads nor writes after the handshake.
	Mute Fault = "mute"
)

// DefaultServices returns the services of the demo.
func DefaultServices() []Service {
	return []Service{{
		Name: "echo", Namespace: "testing",
		VIPs: []netip.Addr{firstVIP},
		Ports: []Port{
			{Number: 80, Target: 8080, Protocol: HTTP},
			{Number: 7070, Protocol: GRPC},
			{Number: 9000, Protocol: TCP},
		},
	}}
}

var (
	errNoPorts = errors.New("no ports")
	errNoName  = errors.New("a name and a namespace are needed")
)

// host is the service's fully qualified name.
func (s *Service) host() string { return s.Name + "." + s.Namespace + ".svc." + domain }

func (s *Service) account() string {
	if s.ServiceAccount == "" {
		return defaultAccount
	}
	return s.ServiceAccount
}

func (p Port) target() uint16 {
	if p.Target == 0 {
		return p.Number
	}
	return p.Target
}

// complete checks a service and fills in what was left out, save the VIP.
func (s Service) complete() (Service, error) {
	if s.Name == "" || s.Namespace == "" {
		return s, fmt.Errorf("service %q: %w", s.Name+"."+s.Namespace, errNoName)
	}
	if len(s.Ports) == 0 {
		return s, fmt.Errorf("service %q: %w", s.host(), errNoPorts)
	}
	for _, p := range s.Ports {
		switch p.Protocol {
		case HTTP, GRPC, TCP, Auto:
		default:
			return s, fmt.Errorf("service %q: port %d: unknown protocol %q", s.host(), p.Number, p.Protocol)
		}
		switch p.App {
		case Echo, Banner, Sink, Source:
		default:
			return s, fmt.Errorf("service %q: port %d: unknown app %q", s.host(), p.Number, p.App)
		}
	}
	switch s.TLS {
	case Strict, Permissive, Disabled, HBONE:
	default:
		return s, fmt.Errorf("service %q: unknown TLS mode %q", s.host(), s.TLS)
	}
	if s.Headless && len(s.VIPs) > 0 {
		return s, fmt.Errorf("service %q: headless and with addresses", s.host())
	}
	if s.Endpoints == nil {
		s.Endpoints = make([]Endpoint, defaultEndpoints)
	}
	named := make([]Endpoint, len(s.Endpoints))
	seen := map[string]bool{}
	for i, e := range s.Endpoints {
		if e.Name == "" {
			e.Name = fmt.Sprintf("%s-%d", s.Name, i+1)
		}
		if seen[e.Name] {
			return s, fmt.Errorf("service %q: two endpoints %q", s.host(), e.Name)
		}
		seen[e.Name] = true
		if e.Weight == 0 {
			e.Weight = 1
		}
		if s.TLS == HBONE && !e.Address.IsValid() {
			e.Address = netip.AddrFrom4([4]byte{10, 244, 0, byte(firstPod + i)})
		}
		named[i] = e
	}
	s.Endpoints = named
	return s, nil
}
