// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"strconv"
	"strings"
)

// A Workload is who we are: the source labels of every metric.
type Workload struct {
	Name, Namespace                  string
	App, Version                     string
	Cluster                          string
	CanonicalName, CanonicalRevision string
	// Principal returns our own SPIFFE ID; nil or "": unknown.
	Principal func() string
}

const (
	unknown = "unknown"
	latest  = "latest" // Istio's default revision
)

// Clusters and routes that stand for what the mesh does not know.
const (
	passthroughCluster = "PassthroughCluster"
	blackholeCluster   = "BlackHoleCluster"
	allowAny           = "allow_any"
	blockAll           = "block_all"
)

// peerLabels are the labels that all of Istio's metrics share, flowLabels are
// added for TCP, requestLabels for HTTP.
var (
	peerLabels = []string{
		"reporter",
		"source_workload", "source_canonical_service", "source_canonical_revision",
		"source_workload_namespace", "source_principal", "source_app", "source_version", "source_cluster",
		"destination_workload", "destination_workload_namespace", "destination_principal",
		"destination_app", "destination_version", "destination_service",
		"destination_canonical_service", "destination_canonical_revision",
		"destination_service_name", "destination_service_namespace", "destination_cluster",
	}
	flowLabels    = append(peerLabels[:len(peerLabels):len(peerLabels)], "request_protocol", "response_flags", "connection_security_policy")
	requestLabels = append(flowLabels[:len(flowLabels):len(flowLabels)], "response_code", "grpc_response_status")
)

// A labelKey holds what the labels of a record depend on. It is the key of
// the cache, and the labels are made from it alone.
type labelKey struct {
	protocol    string
	service     string // the host
	serviceName string
	workload    string // Istio's string of the endpoint
	peer        string
	principal   string
	flags       string
	status      int
	grpcStatus  string
	foreign     bool // the service is named by what the client wrote
}

// keyOf follows populatePeerInfo of istio_stats for a client sidecar.
func (t *Telemetry) keyOf(r *Record) labelKey {
	k := labelKey{protocol: r.Protocol, flags: r.flags()}
	if r.Endpoint != nil {
		k.workload = r.Endpoint.Workload
	}
	if r.MTLS {
		k.peer = r.PeerID
		if p := t.cfg.Workload.Principal; p != nil {
			k.principal = p()
		}
	}
	if r.Protocol != TCP {
		k.status, k.grpcStatus = r.Status, grpcStatus(r.GRPCStatus)
	}
	k.service, k.serviceName, k.foreign = service(r)
	return k
}

// service returns the labels destination_service and destination_service_name.
// A request to what the mesh does not know is named by its Host, as Istio
// does: then the name is foreign, and not bounded by the mesh.
func service(r *Record) (host, name string, foreign bool) {
	foreign = r.Host != ""
	switch r.Route {
	case blockAll:
		return r.Host, blackholeCluster, foreign
	case allowAny:
		return r.Host, passthroughCluster, foreign
	}
	if r.Cluster == nil {
		return r.Host, r.Host, foreign
	}
	if n := r.Cluster.Name; n == passthroughCluster || n == blackholeCluster {
		return r.Host, n, foreign
	}
	s := r.Cluster.Istio.Service()
	if s.Host == "" {
		return r.Host, r.Host, foreign
	}
	if s.Name == "" {
		s.Name, _, _ = strings.Cut(s.Host, ".")
	}
	return s.Host, s.Name, false
}

// values returns the label values in the order of requestLabels; a prefix of
// them serves the other metrics.
func (k *labelKey) values(w *Workload) []string {
	peer := parseWorkload(k.workload)
	namespace := or(spiffeNamespace(k.peer), peer.namespace)
	code := ""
	if k.protocol != TCP {
		code = strconv.Itoa(k.status)
	}
	return []string{
		"source",
		or(w.Name, unknown), or(w.CanonicalName, unknown), or(w.CanonicalRevision, latest),
		or(w.Namespace, unknown), or(k.principal, unknown), or(w.App, unknown), or(w.Version, unknown), or(w.Cluster, unknown),
		or(peer.name, unknown), or(namespace, unknown), or(k.peer, unknown),
		unknown, unknown, or(k.service, unknown), // an endpoint's metadata has neither app nor version
		or(peer.canonical, unknown), or(peer.revision, latest),
		or(k.serviceName, unknown), or(namespace, unknown), or(peer.cluster, unknown),
		k.protocol, k.flags, unknown, // only the server knows whether the connection was secured
		code, k.grpcStatus,
	}
}

// anonymous returns the key that stands for k once there are too many. It
// keeps what is bounded by nature.
func (k labelKey) anonymous() labelKey {
	o := labelKey{protocol: k.protocol}
	if k.serviceName == passthroughCluster || k.serviceName == blackholeCluster {
		o.serviceName = k.serviceName
	}
	return o
}

type workload struct{ name, namespace, canonical, revision, cluster string }

// parseWorkload reads "name;namespace;canonical;revision;cluster", the form in
// which istiod labels an endpoint.
func parseWorkload(s string) workload {
	var part [5]string
	for i := range part {
		part[i], s, _ = strings.Cut(s, ";")
	}
	return workload{part[0], part[1], part[2], part[3], part[4]}
}

// spiffeNamespace returns NS of spiffe://DOMAIN/ns/NS/sa/ACCOUNT, or "".
func spiffeNamespace(id string) string {
	_, rest, ok := strings.Cut(id, "/ns/")
	if !ok {
		return ""
	}
	ns, _, _ := strings.Cut(rest, "/")
	return ns
}

// grpcStatus keeps what a server may say within the codes that exist.
func grpcStatus(s string) string {
	if n, err := strconv.Atoi(s); s != "" && (err != nil || n < 0 || n > 16) {
		return "-1" // Envoy's InvalidCode
	}
	return s
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
