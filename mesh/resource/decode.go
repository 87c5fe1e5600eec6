// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// unpack reads a message of the wanted type out of an Any. kind is for the
// error.
func unpack(kind string, a *anypb.Any, m proto.Message) error {
	if !a.MessageIs(m) {
		return fmt.Errorf("decode %s: type is %q", kind, a.GetTypeUrl())
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return fmt.Errorf("decode %s: %w", kind, err)
	}
	return nil
}

// open reads an extension into m and reports whether it is of that type.
func open(a *anypb.Any, m proto.Message) (bool, error) {
	if !a.MessageIs(m) {
		return false, nil
	}
	return true, proto.Unmarshal(a.GetValue(), m)
}

// typeName is the full name of the message in an extension, looking into the
// TypedStruct in which Istio wraps messages that Envoy itself does not know.
func typeName(a *anypb.Any) string {
	url := a.GetTypeUrl()
	switch strings.TrimPrefix(url, "type.googleapis.com/") {
	case "udpa.type.v1.TypedStruct":
		var ts udpav1.TypedStruct
		if ok, err := open(a, &ts); ok && err == nil && ts.GetTypeUrl() != "" {
			url = ts.GetTypeUrl()
		}
	case "xds.type.v3.TypedStruct":
		var ts xdsv3.TypedStruct
		if ok, err := open(a, &ts); ok && err == nil && ts.GetTypeUrl() != "" {
			url = ts.GetTypeUrl()
		}
	}
	return url[strings.LastIndexByte(url, '/')+1:]
}

// notes are the names of what a resource asks for in vain.
type notes struct{ names []string }

// add notes a name once per resource.
func (n *notes) add(parts ...string) {
	name := intern(strings.Join(parts, ""))
	if !slices.Contains(n.names, name) {
		n.names = append(n.names, name)
	}
}

// A fieldSet is the fields of a message that are understood, or that have no
// meaning here (names for statistics, buffer sizes).
type fieldSet map[protoreflect.Name]struct{}

func fields(names ...protoreflect.Name) fieldSet {
	s := make(fieldSet, len(names))
	for _, n := range names {
		s[n] = struct{}{}
	}
	return s
}

// rest notes every field of a message that is set and not understood, those
// included that did not exist when this was written: nothing is ignored
// without a word. Names read like "route.hash_policy".
func (n *notes) rest(scope string, m proto.Message, understood fieldSet) {
	r := m.ProtoReflect()
	if !r.IsValid() {
		return
	}
	r.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if _, ok := understood[f.Name()]; !ok {
			n.add(scope, ".", string(f.Name()))
		}
		return true
	})
	if len(r.GetUnknown()) > 0 {
		n.add(scope, ".(fields of a newer version)")
	}
}

// done sorts the names, as Range has no order, and hands them over.
func (n *notes) done() []string {
	slices.Sort(n.names)
	return n.names
}

// intern makes equal strings of many resources share their memory.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

func internAll(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = intern(s)
	}
	return out
}

// duration reads a duration: def if it is not set, and never below zero.
func duration(d *durationpb.Duration, def time.Duration) time.Duration {
	if d == nil {
		return def
	}
	return max(d.AsDuration(), 0)
}

// hostPort reads a socket address whose host may be a name.
func hostPort(a *corev3.SocketAddress) (addr netip.AddrPort, host string, port uint16, err error) {
	if a.GetPortValue() > 65535 || a.GetNamedPort() != "" {
		return addr, "", 0, fmt.Errorf("address %q: port %d %q", a.GetAddress(), a.GetPortValue(), a.GetNamedPort())
	}
	if a.GetAddress() == "" {
		return addr, "", 0, errors.New("empty address")
	}
	port = uint16(a.GetPortValue())
	ip, perr := netip.ParseAddr(a.GetAddress())
	if perr != nil {
		return addr, a.GetAddress(), port, nil
	}
	return netip.AddrPortFrom(ip.Unmap(), port), "", port, nil
}

// commonMatches are what nearly every endpoint and cluster of a mesh carries:
// one map serves them all.
var commonMatches = map[[2]string]map[string]string{
	{"tlsMode", "istio"}: {"tlsMode": "istio"},
	{"tunnel", "http"}:   {"tunnel": "http"},
}

// stringMap reads metadata as it is compared: a string by itself, all else by
// its encoding, so that a number does not equal the string of its digits.
func stringMap(s *structpb.Struct) map[string]string {
	if len(s.GetFields()) == 0 {
		return nil
	}
	m := make(map[string]string, len(s.GetFields()))
	for k, v := range s.GetFields() {
		if str, ok := v.GetKind().(*structpb.Value_StringValue); ok {
			if common := commonMatches[[2]string{k, str.StringValue}]; common != nil && len(s.GetFields()) == 1 {
				return common
			}
			m[intern(k)] = intern(str.StringValue)
			continue
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(v)
		if err != nil {
			b = nil // it was just unmarshalled
		}
		m[intern(k)] = "\x00" + string(b)
	}
	return m
}

// metadata returns one namespace of filter metadata.
func metadata(m *corev3.Metadata, namespace string) map[string]*structpb.Value {
	return m.GetFilterMetadata()[namespace].GetFields()
}
