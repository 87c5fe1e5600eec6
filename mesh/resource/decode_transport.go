// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 control planes still send the fields that Envoy has deprecated

package resource

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// The names under which Istio's agent serves the workload's own certificate
// and the mesh's roots to Envoy. They are local: istiod is never asked.
const (
	workloadSecret = "default"
	rootsSecret    = "ROOTCA"
)

// decodeTransport reads a transport socket. What cannot be spoken becomes
// Unsupported, with the reason in its name: it is refused when it is used, and
// is no error of the cluster, whose other endpoints may not need it.
func decodeTransport(ts *corev3.TransportSocket) (Transport, error) {
	config := ts.GetTypedConfig()
	if ts == nil || config == nil && ts.GetName() == "envoy.transport_sockets.raw_buffer" {
		return Transport{Kind: Plain, Name: "raw_buffer"}, nil
	}
	var tls tlsv3.UpstreamTlsContext
	switch ok, err := open(config, &tls); {
	case err != nil:
		return Transport{}, fmt.Errorf("transport socket %q: %w", ts.GetName(), err)
	case ok:
		return decodeTLS(&tls), nil
	case config.MessageIs((*rawv3.RawBuffer)(nil)):
		return Transport{Kind: Plain, Name: "raw_buffer"}, nil
	case config.MessageIs((*internalv3.InternalUpstreamTransport)(nil)):
		// Istio's only use of it leads to the connect_originate listener.
		return Transport{Kind: HBONE, Name: "internal_upstream"}, nil
	}
	return unsupported("transport socket %s", typeName(config)), nil
}

func unsupported(format string, args ...any) Transport {
	return Transport{Kind: Unsupported, Name: intern(fmt.Sprintf(format, args...))}
}

var (
	tlsFields = fields("common_tls_context", "sni", "allow_renegotiation", "max_session_keys", "enforce_rsa_key_usage")
	// Go's own choice of versions (1.2 and up) and ciphers stands in for
	// tls_params.
	commonTLSFields = fields("tls_params", "alpn_protocols", "tls_certificate_sds_secret_configs",
		"validation_context_sds_secret_config", "combined_validation_context")
	// An expired certificate stays refused, whatever allow_expired_certificate
	// says, and so does an untrusted one.
	validationFields = fields("match_subject_alt_names", "match_typed_subject_alt_names",
		"allow_expired_certificate", "trust_chain_verification", "watched_directory")
)

// decodeTLS tells Istio's own mTLS from all other TLS. Only when the client
// certificate is the workload's, the roots are the mesh's, and every condition
// on the peer is one that can be judged, is it IstioMTLS.
func decodeTLS(tls *tlsv3.UpstreamTlsContext) Transport {
	common := tls.GetCommonTlsContext()
	secrets := common.GetTlsCertificateSdsSecretConfigs()
	if len(secrets) == 0 {
		return unsupported("TLS origination without a client certificate")
	}
	if len(secrets) > 1 || secrets[0].GetName() != workloadSecret {
		return unsupported("TLS origination with certificate %q", secrets[0].GetName())
	}
	combined := common.GetCombinedValidationContext()
	roots := combined.GetValidationContextSdsSecretConfig()
	if roots == nil {
		roots = common.GetValidationContextSdsSecretConfig()
	}
	if roots.GetName() != rootsSecret {
		return unsupported("TLS with roots %q", roots.GetName())
	}
	var strange notes
	strange.rest("tls", tls, tlsFields)
	strange.rest("tls", common, commonTLSFields)
	validation := combined.GetDefaultValidationContext()
	if validation != nil {
		strange.rest("tls", validation, validationFields)
	}
	if len(strange.names) > 0 {
		return unsupported("TLS option %s", strange.done()[0])
	}
	t := Transport{Kind: IstioMTLS, Name: "tls", SNI: tls.GetSni(), ALPN: internAll(common.GetAlpnProtocols())}
	for _, m := range validation.GetMatchSubjectAltNames() {
		if !t.addSAN(m) {
			return unsupported("TLS with a SAN matcher")
		}
	}
	for _, m := range validation.GetMatchTypedSubjectAltNames() {
		uri := m.GetSanType() == tlsv3.SubjectAltNameMatcher_URI || m.GetSanType() == tlsv3.SubjectAltNameMatcher_DNS
		if !uri || !t.addSAN(m.GetMatcher()) {
			return unsupported("TLS with a SAN matcher of type %s", m.GetSanType())
		}
	}
	return t
}

// addSAN adds a condition on the peer's name, unless it cannot be expressed.
// An empty condition is none of those: it would match nothing or everything.
func (t *Transport) addSAN(m *matcherv3.StringMatcher) bool {
	var san SANMatch
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		san.Exact = intern(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		san.Prefix = intern(p.Prefix)
	case *matcherv3.StringMatcher_Suffix:
		san.Suffix = intern(p.Suffix)
	}
	if san == (SANMatch{}) || m.GetIgnoreCase() {
		return false
	}
	t.SANs = append(t.SANs, san)
	return true
}
