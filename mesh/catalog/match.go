// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// matches judges all conditions of a route. path comes without its query, as
// Envoy matches paths.
func matches(m *resource.RouteMatch, r *Request, path, query string) bool {
	if len(m.Unsupported) > 0 || !pathMatches(m, path) {
		return false
	}
	if m.GRPC && !r.GRPC {
		return false
	}
	if m.HasFraction && scatter(r.Rand)%1_000_000 >= uint64(m.Fraction) {
		return false
	}
	for i := range m.Headers {
		if !headerMatches(&m.Headers[i], r) {
			return false
		}
	}
	for i := range m.Query {
		value, ok := queryValue(query, m.Query[i].Name)
		if !valueMatches(&m.Query[i], value, ok) {
			return false
		}
	}
	return true
}

// scatter spreads the number that draws a fraction of the requests, so that it
// is independent of the draw among weighted clusters by the same number.
func scatter(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func pathMatches(m *resource.RouteMatch, path string) bool {
	switch {
	case m.Regex != nil:
		return m.Regex.MatchString(path)
	case m.Path != "":
		return len(path) == len(m.Path) && hasPrefix(path, m.Path, m.CaseSensitive)
	case m.PathPrefix != "":
		return hasPrefix(path, m.PathPrefix, m.CaseSensitive) &&
			(len(path) == len(m.PathPrefix) || path[len(m.PathPrefix)] == '/')
	}
	return hasPrefix(path, m.Prefix, m.CaseSensitive)
}

func hasPrefix(s, prefix string, caseSensitive bool) bool {
	if caseSensitive {
		return strings.HasPrefix(s, prefix)
	}
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

func headerMatches(m *resource.HeaderMatch, r *Request) bool {
	switch m.Name {
	case ":method":
		return valueMatches(m, r.Method, true)
	case ":authority", "host":
		return valueMatches(m, r.Host, r.Host != "")
	case ":path":
		return valueMatches(m, r.Path, true)
	case ":scheme":
		return valueMatches(m, r.Scheme, r.Scheme != "")
	}
	var values []string
	if r.Header != nil {
		name := m.Canonical
		if name == "" {
			name = http.CanonicalHeaderKey(m.Name)
		}
		values = r.Header(name)
	}
	switch len(values) {
	case 0:
		return valueMatches(m, "", false)
	case 1:
		return valueMatches(m, values[0], true)
	}
	// Lines of one header are one list (RFC 9110, 5.3); Envoy joins them so.
	return valueMatches(m, strings.Join(values, ","), true)
}

// valueMatches judges one header or parameter. When a value is asked for and
// there is none, the answer is no, even to the inverted question: that is what
// Envoy does, unless it is told to take a missing header for an empty one.
func valueMatches(m *resource.HeaderMatch, value string, present bool) bool {
	if !m.HasValue() {
		return present != m.Invert
	}
	if !present && !m.AbsentAsEmpty {
		return false
	}
	return valueFits(m, value) != m.Invert
}

func valueFits(m *resource.HeaderMatch, value string) bool {
	switch {
	case m.Regex != nil:
		return m.Regex.MatchString(value)
	case m.HasRange:
		n, err := strconv.ParseInt(value, 10, 64)
		return err == nil && m.RangeLo <= n && n < m.RangeHi
	case m.HasExact:
		return len(value) == len(m.Exact) && hasPrefix(value, m.Exact, !m.FoldCase)
	case m.Prefix != "":
		return hasPrefix(value, m.Prefix, !m.FoldCase)
	case m.Suffix != "":
		return len(value) >= len(m.Suffix) && hasPrefix(value[len(value)-len(m.Suffix):], m.Suffix, !m.FoldCase)
	case m.FoldCase:
		return strings.Contains(strings.ToLower(value), strings.ToLower(m.Contains))
	}
	return strings.Contains(value, m.Contains)
}

// queryValue returns the first value of a parameter, not decoded: nor does
// Envoy decode it for routing.
func queryValue(query, name string) (string, bool) {
	for query != "" {
		var param string
		param, query, _ = strings.Cut(query, "&")
		if key, value, _ := strings.Cut(param, "="); key == name {
			return value, true
		}
	}
	return "", false
}
