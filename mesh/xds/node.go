// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// DefaultIstioVersion is the version that a node states unless told
// otherwise. istiod chooses some of what it sends by it, and takes a missing
// one for the newest; this is the one that the decoders were tried against.
const DefaultIstioVersion = "1.31.0"

// A NodeConfig describes this machine to istiod. Namespace and ServiceAccount
// are checked against the identity that the connection authenticates with.
type NodeConfig struct {
	Name           string       // of the workload instance, as a pod's. Default: WorkloadName
	Namespace      string       // required
	ServiceAccount string       // should be set
	WorkloadName   string       // in metrics and peer metadata
	Owner          string       // as in "kubernetes://apis/v1/namespaces/NS/pods/NAME"
	Addresses      []netip.Addr // INSTANCE_IPS; the first one is also the address in the ID
	DNSDomain      string       // default: NAMESPACE.svc.cluster.local
	ClusterID      string       // required: selects whose addresses of services are sent
	Network        string       // decides between a pod's address and a gateway's
	MeshID         string
	IstioVersion   string // default: DefaultIstioVersion
	// Labels select Sidecar, EnvoyFilter, Telemetry and other resources.
	Labels      map[string]string
	Annotations map[string]string
	// AutoRegisterGroup has istiod make a WorkloadEntry of this WorkloadGroup.
	AutoRegisterGroup string
	// Locality is REGION[/ZONE[/SUBZONE]].
	Locality string
	// Metadata is added to what the fields above make, and wins over it.
	Metadata map[string]string
}

// unspecified stands in the ID of a node whose address is not known; istiod
// refuses an ID without one. It is of the range for documentation (RFC 5737).
var unspecified = netip.AddrFrom4([4]byte{192, 0, 2, 1})

// NewNode returns the node of a sidecar-like client that istiod does not run
// as a pod. The kinds of the metadata values matter: istiod decodes them into
// typed fields, where a list is one string with commas and a boolean is the
// string "true".
func NewNode(cfg NodeConfig) *corepb.Node {
	addrs := cfg.Addresses
	if len(addrs) == 0 {
		addrs = []netip.Addr{unspecified}
	}
	name := cmp.Or(cfg.Name, cfg.WorkloadName, "nasp-tun")
	domain := cmp.Or(cfg.DNSDomain, cfg.Namespace+".svc.cluster.local")
	return &corepb.Node{
		Id:       fmt.Sprintf("sidecar~%s~%s.%s~%s", addrs[0].WithZone(""), name, cfg.Namespace, domain),
		Cluster:  cmp.Or(cfg.WorkloadName, name) + "." + cfg.Namespace,
		Metadata: &structpb.Struct{Fields: metadata(cfg, name, addrs)},
		Locality: locality(cfg.Locality),
	}
}

func metadata(cfg NodeConfig, name string, addrs []netip.Addr) map[string]*structpb.Value {
	ips := make([]string, len(addrs))
	for i, a := range addrs {
		ips[i] = a.WithZone("").String()
	}
	fields := map[string]*structpb.Value{}
	for key, value := range map[string]string{
		"NAME":                name,
		"NAMESPACE":           cfg.Namespace,
		"SERVICE_ACCOUNT":     cfg.ServiceAccount,
		"WORKLOAD_NAME":       cfg.WorkloadName,
		"OWNER":               cfg.Owner,
		"CLUSTER_ID":          cfg.ClusterID,
		"NETWORK":             cfg.Network,
		"MESH_ID":             cfg.MeshID,
		"ISTIO_VERSION":       cmp.Or(cfg.IstioVersion, DefaultIstioVersion),
		"INSTANCE_IPS":        strings.Join(ips, ","),
		"AUTO_REGISTER_GROUP": cfg.AutoRegisterGroup,
		// The listeners of captured traffic, by original destination; NONE
		// would give listeners to bind on loopback.
		"INTERCEPTION_MODE": "REDIRECT",
		// The addresses that istiod allocates to services without one.
		"DNS_CAPTURE": "true",
		// The same for an istiod before 1.25, where they are allocated per node.
		"DNS_AUTO_ALLOCATE": "true",
		// Listeners that take HTTP/1.0 for HTTP too: programs that cannot be
		// changed are our trade, and some speak nothing newer.
		"HTTP10": "1",
	} {
		if value != "" {
			fields[key] = structpb.NewStringValue(value)
		}
	}
	for key, m := range map[string]map[string]string{"LABELS": cfg.Labels, "ANNOTATIONS": cfg.Annotations} {
		if len(m) == 0 {
			continue
		}
		object := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(m))}
		for k, v := range m {
			object.Fields[k] = structpb.NewStringValue(v)
		}
		fields[key] = structpb.NewStructValue(object)
	}
	for key, value := range cfg.Metadata {
		fields[key] = structpb.NewStringValue(value)
	}
	return fields
}

func locality(s string) *corepb.Locality {
	if s == "" {
		return nil
	}
	var part [3]string
	copy(part[:], strings.SplitN(s, "/", 3))
	return &corepb.Locality{Region: part[0], Zone: part[1], SubZone: part[2]}
}

// checkNode refuses a node that istiod would refuse, since it does so by
// ending the stream, for ever.
func checkNode(n *corepb.Node) error {
	if n == nil {
		return errors.New("xds: no node")
	}
	part := strings.Split(n.GetId(), "~")
	if len(part) != 4 {
		return fmt.Errorf("xds: node ID %q: want four parts separated by ~", n.GetId())
	}
	if _, err := netip.ParseAddr(part[1]); err != nil {
		return fmt.Errorf("xds: node ID %q: %w", n.GetId(), err)
	}
	if _, err := proto.Marshal(n); err != nil {
		return fmt.Errorf("xds: node ID %q: %w", n.GetId(), err)
	}
	return nil
}
