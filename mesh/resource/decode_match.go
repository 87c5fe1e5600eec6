// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 control planes still send the fields that Envoy has deprecated

package resource

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// allRequests is a Fraction that lets every request pass.
const allRequests = 1_000_000

var (
	matchFields = fields("prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive",
		"runtime_fraction", "headers", "query_parameters", "grpc")
	headerFields = fields("name", "exact_match", "safe_regex_match", "range_match", "present_match", "prefix_match",
		"suffix_match", "contains_match", "string_match", "invert_match", "treat_missing_header_as_empty")
	queryFields  = fields("name", "string_match", "present_match")
	stringFields = fields("exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case")
)

// decode reads the conditions of a route.
func (m *RouteMatch) decode(pb *routev3.RouteMatch) (err error) {
	var n notes
	n.rest("match", pb, matchFields)
	m.CaseSensitive = boolOr(pb.GetCaseSensitive(), true)
	m.GRPC = pb.GetGrpc() != nil
	switch p := pb.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		m.Prefix = intern(p.Prefix)
	case *routev3.RouteMatch_Path:
		m.Path = intern(p.Path)
	case *routev3.RouteMatch_PathSeparatedPrefix:
		m.PathPrefix = intern(p.PathSeparatedPrefix)
	case *routev3.RouteMatch_SafeRegex:
		if m.Regex, err = anchored(p.SafeRegex.GetRegex()); err != nil {
			return err
		}
	case *routev3.RouteMatch_ConnectMatcher_, *routev3.RouteMatch_PathMatchPolicy: // noted
	default:
		return fmt.Errorf("match without a path")
	}
	if f := pb.GetRuntimeFraction(); f != nil {
		m.HasFraction, m.Fraction = true, fraction(f.GetDefaultValue())
	}
	for _, h := range pb.GetHeaders() {
		hm, err := decodeHeaderMatch(h, &n)
		if err != nil {
			return fmt.Errorf("header %q: %w", h.GetName(), err)
		}
		m.Headers = append(m.Headers, hm)
	}
	for _, q := range pb.GetQueryParameters() {
		n.rest("match.query", q, queryFields)
		qm := HeaderMatch{Name: q.GetName(), Present: q.GetStringMatch() == nil}
		if err := qm.stringMatch(q.GetStringMatch(), &n); err != nil {
			return fmt.Errorf("query parameter %q: %w", q.GetName(), err)
		}
		if p, ok := q.GetQueryParameterMatchSpecifier().(*routev3.QueryParameterMatcher_PresentMatch); ok {
			qm.Invert = !p.PresentMatch
		}
		m.Query = append(m.Query, qm)
	}
	m.Unsupported = n.done()
	return nil
}

// fraction reads a percentage in millionths.
func fraction(p *typev3.FractionalPercent) uint32 {
	scale := uint64(allRequests / 100)
	switch p.GetDenominator() {
	case typev3.FractionalPercent_TEN_THOUSAND:
		scale = allRequests / 10_000
	case typev3.FractionalPercent_MILLION:
		scale = 1
	}
	return uint32(min(uint64(p.GetNumerator())*scale, allRequests))
}

// anchored compiles a regular expression that matches whole strings only. The
// syntax is RE2 for Envoy as for Go.
func anchored(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil {
		return nil, err // by itself, so that it cannot close our group
	}
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}

func decodeHeaderMatch(pb *routev3.HeaderMatcher, n *notes) (HeaderMatch, error) {
	n.rest("match.header", pb, headerFields)
	h := HeaderMatch{
		Name:          intern(strings.ToLower(pb.GetName())),
		Invert:        pb.GetInvertMatch(),
		AbsentAsEmpty: pb.GetTreatMissingHeaderAsEmpty(),
	}
	h.Canonical = intern(http.CanonicalHeaderKey(h.Name))
	var err error
	switch m := pb.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_ExactMatch:
		h.Exact, h.HasExact = m.ExactMatch, true
	case *routev3.HeaderMatcher_SafeRegexMatch:
		h.Regex, err = anchored(m.SafeRegexMatch.GetRegex())
	case *routev3.HeaderMatcher_RangeMatch:
		h.RangeLo, h.RangeHi, h.HasRange = m.RangeMatch.GetStart(), m.RangeMatch.GetEnd(), true
	case *routev3.HeaderMatcher_PrefixMatch:
		h.Prefix = m.PrefixMatch
	case *routev3.HeaderMatcher_SuffixMatch:
		h.Suffix = m.SuffixMatch
	case *routev3.HeaderMatcher_ContainsMatch:
		h.Contains = m.ContainsMatch
	case *routev3.HeaderMatcher_StringMatch:
		err = h.stringMatch(m.StringMatch, n)
	case *routev3.HeaderMatcher_PresentMatch:
		h.Invert = h.Invert == m.PresentMatch // "absent" is the inverse of "present"
	}
	h.Present = !h.HasValue()
	return h, err
}

func (h *HeaderMatch) stringMatch(pb *matcherv3.StringMatcher, n *notes) (err error) {
	n.rest("match.string", pb, stringFields)
	h.FoldCase = pb.GetIgnoreCase()
	switch m := pb.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		h.Exact, h.HasExact = m.Exact, true
	case *matcherv3.StringMatcher_Prefix:
		h.Prefix = m.Prefix
	case *matcherv3.StringMatcher_Suffix:
		h.Suffix = m.Suffix
	case *matcherv3.StringMatcher_Contains:
		h.Contains = m.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		h.Regex, err = anchored(m.SafeRegex.GetRegex())
	}
	return err
}
