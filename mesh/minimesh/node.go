// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"net/netip"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A node is what a client says of itself in its first message.
type node struct {
	namespace, account string
	dnsNamespace       string
}

// parseNode reads "sidecar~IP~NAME.NS~NS.svc.DOMAIN" and the metadata, and
// refuses what istiod refuses.
func parseNode(n *corepb.Node) (node, error) {
	if n.GetId() == "" {
		return node{}, errNoNode
	}
	parts := strings.Split(n.GetId(), "~")
	if len(parts) != 4 {
		return node{}, status.Errorf(codes.InvalidArgument, "missing parts in the service node %q", n.GetId())
	}
	if parts[0] != "sidecar" {
		return node{}, status.Errorf(codes.InvalidArgument, "invalid node type %q: only sidecars are served", parts[0])
	}
	md := n.GetMetadata().GetFields()
	ips := parts[1]
	if v := md["INSTANCE_IPS"].GetStringValue(); v != "" {
		ips = v
	}
	for ip := range strings.SplitSeq(ips, ",") {
		if _, err := netip.ParseAddr(ip); err != nil {
			return node{}, status.Errorf(codes.InvalidArgument, "no valid IP address in the service node %q", n.GetId())
		}
	}
	dnsNamespace, _, _ := strings.Cut(parts[3], ".")
	return node{
		namespace:    md["NAMESPACE"].GetStringValue(),
		account:      md["SERVICE_ACCOUNT"].GetStringValue(),
		dnsNamespace: dnsNamespace,
	}, nil
}

// check is PILOT_ENABLE_XDS_IDENTITY_CHECK: a client may only speak for its
// own namespace and account.
func (n node) check(c caller) error {
	if n.namespace != c.namespace {
		return status.Errorf(codes.PermissionDenied,
			"authorization failed: no identities match NAMESPACE %q", n.namespace)
	}
	if n.account != "" && n.account != c.account {
		return status.Errorf(codes.PermissionDenied,
			"authorization failed: no identities match SERVICE_ACCOUNT %q", n.account)
	}
	return nil
}
