// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/netip"
	"time"
)

// MediaType is our own wire form. It is asked for by Accept; without it the
// answer is nasp's form, application/json.
const MediaType = "application/vnd.nasp-tun.enrollment.v1+json"

const mediaJSON = "application/json"

// autoRegisterKey is where nasp's form holds the group to register with.
const autoRegisterKey = "AUTO_REGISTER_GROUP"

// request is the body of POST /config, in both forms. nasp's server reads
// nothing of it.
type request struct {
	PodName string
	Version string
}

// naspForm is the answer of nasp's Heimdall: two of its Go structs, without
// JSON tags.
type naspForm struct {
	CAClientConfig naspCA
	Environment    naspEnvironment
}

// naspCA is IstioCAClientConfig of github.com/cisco-open/libnasp.
type naspCA struct {
	CAEndpoint    string
	CAEndpointSAN string
	ClusterID     string
	Token         []byte
	CApem         []byte
	Revision      string
	MeshID        string
	TrustDomain   string
}

// naspEnvironment is IstioEnvironment of github.com/cisco-open/libnasp.
type naspEnvironment struct {
	Enabled            bool
	Type               string
	PodName            string
	PodNamespace       string
	PodOwner           string
	PodServiceAccount  string
	WorkloadName       string
	AppContainers      []string
	InstanceIPs        []string
	Labels             map[string]string
	PlatformMetadata   map[string]string
	Network            string
	SearchDomains      []string
	AdditionalMetadata map[string]string
	ClusterID          string
	DNSDomain          string
	TrustDomain        string
	MeshID             string
	IstioCAAddress     string
	IstioVersion       string
	IstioRevision      string
	SecretTTL          time.Duration
}

// ownForm is the answer in our form.
type ownForm struct {
	Istiod struct {
		Address    string   `json:"address"`
		ServerName string   `json:"server_name,omitempty"`
		Others     []string `json:"other_addresses,omitempty"`
		Roots      string   `json:"roots"` // PEM
	} `json:"istiod"`
	Token       ownToken  `json:"token"`
	AccessToken *ownToken `json:"access_token,omitempty"`
	Mesh        struct {
		ClusterID    string `json:"cluster_id,omitempty"`
		MeshID       string `json:"mesh_id,omitempty"`
		TrustDomain  string `json:"trust_domain,omitempty"`
		Revision     string `json:"revision,omitempty"`
		IstioVersion string `json:"istio_version,omitempty"`
	} `json:"mesh"`
	Workload struct {
		Namespace         string            `json:"namespace"`
		ServiceAccount    string            `json:"service_account,omitempty"`
		Name              string            `json:"name,omitempty"`
		Owner             string            `json:"owner,omitempty"`
		Labels            map[string]string `json:"labels,omitempty"`
		Network           string            `json:"network,omitempty"`
		InstanceIPs       []netip.Addr      `json:"instance_ips,omitempty"`
		AutoRegisterGroup string            `json:"auto_register_group,omitempty"`
	} `json:"workload"`
	DNS struct {
		Domain string   `json:"domain,omitempty"`
		Search []string `json:"search,omitempty"`
	} `json:"dns"`
}

type ownToken struct {
	Value  string    `json:"value"`
	Expiry time.Time `json:"expiry,omitzero"`
}

// marshalNASP writes an enrolment in nasp's form.
func marshalNASP(e *Enrollment) ([]byte, error) {
	env := naspEnvironment{
		Enabled:           true,
		Type:              "sidecar",
		PodNamespace:      e.Namespace,
		PodOwner:          e.Owner,
		PodServiceAccount: e.ServiceAccount,
		WorkloadName:      e.WorkloadName,
		Labels:            e.Labels,
		Network:           e.Network,
		SearchDomains:     e.SearchDomains,
		ClusterID:         e.ClusterID,
		DNSDomain:         e.DNSDomain,
		TrustDomain:       e.TrustDomain,
		MeshID:            e.MeshID,
		IstioCAAddress:    e.IstiodAddress,
		IstioVersion:      e.IstioVersion,
		IstioRevision:     e.Revision,
	}
	for _, ip := range e.InstanceIPs {
		env.InstanceIPs = append(env.InstanceIPs, ip.String())
	}
	if e.AutoRegisterGroup != "" {
		env.AdditionalMetadata = map[string]string{autoRegisterKey: e.AutoRegisterGroup}
	}
	return json.Marshal(naspForm{
		CAClientConfig: naspCA{
			CAEndpoint:    e.IstiodAddress,
			CAEndpointSAN: e.IstiodServerName,
			ClusterID:     e.ClusterID,
			Token:         []byte(e.Token.Reveal()),
			CApem:         e.Roots,
			Revision:      e.Revision,
			MeshID:        e.MeshID,
			TrustDomain:   e.TrustDomain,
		},
		Environment: env,
	})
}

// unmarshalNASP reads nasp's form, of either generation.
func unmarshalNASP(b []byte) (Enrollment, error) {
	var f naspForm
	if err := json.Unmarshal(b, &f); err != nil {
		return Enrollment{}, err
	}
	ca, env := &f.CAClientConfig, &f.Environment
	e := Enrollment{
		IstiodAddress:     ca.CAEndpoint,
		IstiodServerName:  ca.CAEndpointSAN,
		Roots:             ca.CApem,
		Token:             NewSecret(string(ca.Token)),
		ClusterID:         ca.ClusterID,
		MeshID:            either(ca.MeshID, env.MeshID),
		TrustDomain:       either(ca.TrustDomain, env.TrustDomain),
		Revision:          either(ca.Revision, env.IstioRevision),
		IstioVersion:      env.IstioVersion,
		Namespace:         env.PodNamespace,
		ServiceAccount:    env.PodServiceAccount,
		WorkloadName:      env.WorkloadName,
		Owner:             env.PodOwner,
		Labels:            env.Labels,
		Network:           env.Network,
		AutoRegisterGroup: env.AdditionalMetadata[autoRegisterKey],
		DNSDomain:         env.DNSDomain,
		SearchDomains:     env.SearchDomains,
	}
	if e.AutoRegisterGroup == "" && ca.MeshID != "" {
		// The second generation leaves it to the client to register with
		// the group that it is named after; the first knows no groups, nor
		// the mesh's ID here.
		e.AutoRegisterGroup = env.WorkloadName
	}
	for _, s := range env.InstanceIPs {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return Enrollment{}, fmt.Errorf("instance address: %w", err)
		}
		e.InstanceIPs = append(e.InstanceIPs, ip)
	}
	return e, nil
}

// marshalOwn writes an enrolment in our form.
func marshalOwn(e *Enrollment) ([]byte, error) {
	var f ownForm
	f.Istiod.Address, f.Istiod.ServerName, f.Istiod.Roots = e.IstiodAddress, e.IstiodServerName, string(e.Roots)
	f.Istiod.Others = e.OtherAddresses
	f.Token = ownToken{e.Token.Reveal(), e.TokenExpiry}
	if !e.AccessToken.IsZero() {
		f.AccessToken = &ownToken{e.AccessToken.Reveal(), e.AccessTokenExpiry}
	}
	m := &f.Mesh
	m.ClusterID, m.MeshID, m.TrustDomain, m.Revision, m.IstioVersion = e.ClusterID, e.MeshID, e.TrustDomain, e.Revision, e.IstioVersion
	w := &f.Workload
	w.Namespace, w.ServiceAccount, w.Name, w.Owner = e.Namespace, e.ServiceAccount, e.WorkloadName, e.Owner
	w.Labels, w.Network, w.InstanceIPs, w.AutoRegisterGroup = e.Labels, e.Network, e.InstanceIPs, e.AutoRegisterGroup
	f.DNS.Domain, f.DNS.Search = e.DNSDomain, e.SearchDomains
	return json.Marshal(f)
}

// unmarshalOwn reads our form.
func unmarshalOwn(b []byte) (Enrollment, error) {
	var f ownForm
	if err := json.Unmarshal(b, &f); err != nil {
		return Enrollment{}, err
	}
	m, w := &f.Mesh, &f.Workload
	e := Enrollment{
		IstiodAddress: f.Istiod.Address, IstiodServerName: f.Istiod.ServerName, Roots: []byte(f.Istiod.Roots),
		OtherAddresses: f.Istiod.Others,
		Token:          NewSecret(f.Token.Value), TokenExpiry: f.Token.Expiry,
		ClusterID: m.ClusterID, MeshID: m.MeshID, TrustDomain: m.TrustDomain, Revision: m.Revision, IstioVersion: m.IstioVersion,
		Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, WorkloadName: w.Name, Owner: w.Owner,
		Labels: w.Labels, Network: w.Network, InstanceIPs: w.InstanceIPs, AutoRegisterGroup: w.AutoRegisterGroup,
		DNSDomain: f.DNS.Domain, SearchDomains: f.DNS.Search,
	}
	if f.AccessToken != nil {
		e.AccessToken, e.AccessTokenExpiry = NewSecret(f.AccessToken.Value), f.AccessToken.Expiry
	}
	return e, nil
}

var errForm = errors.New("neither of the forms that are known")

// decode reads an answer by its content type.
func decode(contentType string, b []byte) (Enrollment, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return Enrollment{}, fmt.Errorf("content type %q: %w", contentType, err)
	}
	var e Enrollment
	switch media {
	case MediaType:
		e, err = unmarshalOwn(b)
	case mediaJSON:
		e, err = unmarshalNASP(b)
	default:
		return Enrollment{}, fmt.Errorf("content type %q: %w", media, errForm)
	}
	if err != nil {
		return Enrollment{}, err
	}
	if err := e.Validate(); err != nil {
		return Enrollment{}, err
	}
	e.complete()
	return e, nil
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
