// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/catalog"
	"github.com/nasp-tun/nasp-tun/mesh/xds"
)

// Status is what an operator asks first: who are we, is the control plane
// there, how old is what we know, and what of it has no effect here.
type Status struct {
	Ready    bool           `json:"ready"`
	Identity IdentityStatus `json:"identity"`
	Istiod   IstiodStatus   `json:"istiod"`
	Services int            `json:"services"`
	DNS      DNSStatus      `json:"dns"`
	// Ignored counts the features of the configuration that have no effect.
	Ignored  map[string]int `json:"ignored,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

// DNSStatus counts the questions that programs asked.
type DNSStatus struct {
	Answered  uint64 `json:"answered"` // from the mesh's own names
	Forwarded uint64 `json:"forwarded"`
	Failed    uint64 `json:"failed"`  // forwarded in vain
	Refused   uint64 `json:"refused"` // too many at a time
	Malformed uint64 `json:"malformed"`
}

// IdentityStatus describes the certificate that upstreams see.
type IdentityStatus struct {
	ID          string    `json:"id,omitempty"`
	TrustDomain string    `json:"trustDomain,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	NotAfter    time.Time `json:"notAfter,omitzero"`
	// LastError is why the last renewal failed; empty after one that did not.
	LastError string `json:"lastError,omitempty"`
}

// IstiodStatus describes the stream to the control plane.
type IstiodStatus struct {
	Address    string    `json:"address"`
	Connected  bool      `json:"connected"`
	Since      time.Time `json:"since,omitzero"`
	LastUpdate time.Time `json:"lastUpdate,omitzero"`
	Reconnects int       `json:"reconnects"`
	// Rejected are the resources whose newest version could not be used.
	Rejected []xds.Rejection `json:"rejected,omitempty"`
	// Pending is what the first Snapshot waits for.
	Pending   []string `json:"pending,omitempty"`
	LastError string   `json:"lastError,omitempty"`
}

// Status reports the state of the node. It may be called at any time.
func (m *Mesh) Status() Status {
	st := Status{
		Ready: m.isReady(), Identity: m.identityStatus(), Istiod: m.istiodStatus(m.xds.Status()), DNS: m.dnsStatus(),
	}
	if s := m.catalog.Snapshot(); s != nil {
		st.Services = len(s.Services())
		st.Ignored = s.Ignored()
	}
	st.Warnings = m.warnings(&st)
	return st
}

func (m *Mesh) isReady() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

func (m *Mesh) dnsStatus() DNSStatus {
	q := m.dns.Stats()
	return DNSStatus{Answered: q.Answered, Forwarded: q.Forwarded, Failed: q.Failed, Refused: q.Refused, Malformed: q.Malformed}
}

func (m *Mesh) identityStatus() IdentityStatus {
	var st IdentityStatus
	if c := m.ids.Current(); c != nil {
		st = IdentityStatus{ID: c.ID, TrustDomain: c.TrustDomain, Serial: c.Serial, NotAfter: c.NotAfter}
	}
	if _, err := m.ids.LastError(); err != nil {
		st.LastError = err.Error()
	}
	return st
}

func (m *Mesh) istiodStatus(x xds.Status) IstiodStatus {
	st := IstiodStatus{
		Address: m.cfg.Istiod, Connected: x.Connected, Since: x.Since,
		Reconnects: x.Reconnects, Rejected: x.Rejected,
	}
	if m.catalog.Snapshot() == nil {
		st.Pending = m.catalog.Pending()
	}
	for _, t := range x.LastUpdate {
		if t.After(st.LastUpdate) {
			st.LastUpdate = t
		}
	}
	if x.LastError != nil {
		st.LastError = x.LastError.Error()
	}
	return st
}

// warnings turns states that still work, but not for ever, into sentences.
func (m *Mesh) warnings(st *Status) []string {
	var w []string
	if st.Ready && !st.Istiod.Connected {
		w = append(w, fmt.Sprintf("istiod is away: the last configuration serves on (%s)", st.Istiod.LastError))
	}
	if !st.Identity.NotAfter.IsZero() {
		switch left := time.Until(st.Identity.NotAfter); {
		case left <= 0:
			w = append(w, "the certificate has expired: mutual TLS is refused until istiod signs a new one")
		case st.Identity.LastError != "":
			w = append(w, fmt.Sprintf("the certificate could not be renewed and ends in %s: %s", left.Round(time.Second), st.Identity.LastError))
		}
	}
	return w
}

// Services lists the services of the mesh whose host, or the "name.namespace"
// that it begins with, matches pattern: a shell pattern or a part of the name.
// An empty one matches all.
func (m *Mesh) Services(pattern string) ([]catalog.Service, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	s := m.catalog.Snapshot()
	if s == nil {
		return nil, ErrNotReady
	}
	var out []catalog.Service
	for _, svc := range s.Services() {
		if pattern == "" || matchService(pattern, &svc) {
			out = append(out, svc)
		}
	}
	return out, nil
}

func matchService(pattern string, svc *catalog.Service) bool {
	names := []string{svc.Name}
	if short, _, ok := strings.Cut(svc.Name, ".svc."); ok {
		names = append(names, short)
	}
	for _, name := range names {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
		if !strings.ContainsAny(pattern, `*?[\`) && strings.Contains(name, pattern) {
			return true
		}
	}
	return false
}

// ConfigDump returns the configuration in force, as it was understood, and nil
// before there is one. It holds no secret.
func (m *Mesh) ConfigDump() *catalog.Dump {
	s := m.catalog.Snapshot()
	if s == nil {
		return nil
	}
	d := s.Dump()
	return &d
}
