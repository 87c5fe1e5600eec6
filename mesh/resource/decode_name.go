// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/resource/istiopb"
)

// DecodeNameTable reads the table of NDS. An address that is none is left
// out and noted; the name still exists, so that it is not asked elsewhere.
func DecodeNameTable(a *anypb.Any) (*NameTable, error) {
	var nt istiopb.NameTable
	if err := unpack("name table", a, &nt); err != nil {
		return nil, err
	}
	var n notes
	t := &NameTable{Names: make(map[string]*Name, len(nt.GetTable()))}
	for host, info := range nt.GetTable() {
		name := &Name{
			Host:      intern(strings.ToLower(strings.TrimSuffix(host, "."))),
			Registry:  intern(info.GetRegistry()),
			ShortName: intern(strings.ToLower(info.GetShortname())),
			Namespace: intern(strings.ToLower(info.GetNamespace())),
		}
		for _, s := range info.GetIps() {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				n.add("name table: address that is none")
				continue
			}
			name.Addresses = append(name.Addresses, ip.Unmap())
		}
		t.Names[name.Host] = name
	}
	t.Ignored = n.done()
	return t, nil
}

// DecodeAddress reads an Address of WDS, which is a workload or a service: the
// other result is nil.
func DecodeAddress(a *anypb.Any) (*Workload, *WDSService, error) {
	var addr istiopb.Address
	if err := unpack("address", a, &addr); err != nil {
		return nil, nil, err
	}
	switch t := addr.GetType().(type) {
	case *istiopb.Address_Workload:
		w, err := decodeWorkload(t.Workload)
		if err != nil {
			return nil, nil, fmt.Errorf("decode workload %q: %w", t.Workload.GetUid(), err)
		}
		return w, nil, nil
	case *istiopb.Address_Service:
		s, err := decodeWDSService(t.Service)
		if err != nil {
			return nil, nil, fmt.Errorf("decode service %q: %w", t.Service.GetHostname(), err)
		}
		return nil, s, nil
	}
	return nil, nil, errors.New("decode address: neither a workload nor a service")
}

func decodeWorkload(w *istiopb.Workload) (*Workload, error) {
	if w.GetUid() == "" {
		return nil, errors.New("no uid")
	}
	out := &Workload{
		UID:            w.GetUid(),
		Name:           w.GetName(),
		Namespace:      intern(w.GetNamespace()),
		Network:        intern(w.GetNetwork()),
		ServiceAccount: intern(w.GetServiceAccount()),
		TrustDomain:    intern(w.GetTrustDomain()),
		HBONE:          tunnelled(w.GetTunnelProtocol()),
		Unhealthy:      w.GetStatus() == istiopb.WorkloadStatus_UNHEALTHY,
	}
	for _, b := range w.GetAddresses() {
		ip, err := ipFromBytes(b)
		if err != nil {
			return nil, err
		}
		out.Addresses = append(out.Addresses, ip)
	}
	return out, nil
}

func decodeWDSService(s *istiopb.Service) (*WDSService, error) {
	if s.GetHostname() == "" {
		return nil, errors.New("no host name")
	}
	out := &WDSService{
		Name:      intern(s.GetName()),
		Namespace: intern(s.GetNamespace()),
		Hostname:  intern(s.GetHostname()),
	}
	for _, a := range s.GetAddresses() {
		ip, err := ipFromBytes(a.GetAddress())
		if err != nil {
			return nil, err
		}
		out.Addresses = append(out.Addresses, ip)
	}
	return out, nil
}

func ipFromBytes(b []byte) (netip.Addr, error) {
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return ip, fmt.Errorf("address of %d bytes", len(b))
	}
	return ip.Unmap(), nil
}

// tunnelled reports whether a workload takes no connection but through a
// tunnel. One of a kind that is not known yet is no reason for clear text.
func tunnelled(p istiopb.TunnelProtocol) bool {
	return p != istiopb.TunnelProtocol_NONE && p != istiopb.TunnelProtocol_LEGACY_ISTIO_MTLS
}
