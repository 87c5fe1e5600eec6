// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// nameTable is what istiod's DNS proxy is fed with. The message lives in
// istio.io/istio, so it is written by hand:
//
//	message NameTable { map<string, NameInfo> table = 1; }
//	message NameInfo { repeated string ips = 1; string registry = 2; string shortname = 3; string namespace = 4; }
//
// Headless services are known by the addresses of their pods, and each pod by
// its own name below.
func (w *world) nameTable() *anypb.Any {
	var b []byte
	for i := range w.services {
		s := &w.services[i]
		if !s.Headless {
			b = appendName(b, s, s.host(), s.VIPs)
			continue
		}
		var pods []netip.Addr
		for j := range s.Endpoints {
			if a, ok := s.pod(j); ok {
				pods = append(pods, a)
				b = appendName(b, s, s.Endpoints[j].Name+"."+s.host(), []netip.Addr{a})
			}
		}
		b = appendName(b, s, s.host(), pods)
	}
	return &anypb.Any{TypeUrl: nameTableType, Value: b}
}

// appendName appends one entry of the map.
func appendName(b []byte, s *placed, host string, addrs []netip.Addr) []byte {
	var info []byte
	for _, a := range addrs {
		info = appendField(info, 1, a.String())
	}
	info = appendField(info, 2, "Kubernetes")
	info = appendField(info, 3, s.Name)
	info = appendField(info, 4, s.Namespace)
	e := appendField(nil, 1, host)
	e = appendField(e, 2, string(info))
	return appendField(b, 1, string(e))
}

func appendField(b []byte, n protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
}
