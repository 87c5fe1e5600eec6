// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"time"
)

// NACKs returns what clients have refused so far.
func (m *Mesh) NACKs() []NACK {
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	return slices.Clone(m.hub.nacks)
}

// addrPort is the address of a TCP listener.
func addrPort(a net.Addr) netip.AddrPort {
	t := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(t.Addr().Unmap(), t.Port())
}

// IstiodAddr is where istiod listens; it stays the same for life.
func (m *Mesh) IstiodAddr() netip.AddrPort {
	m.istiodMu.Lock()
	defer m.istiodMu.Unlock()
	return m.istiodAddr
}

// GatewayAddr is where the gateway listens; not valid without one.
func (m *Mesh) GatewayAddr() netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gateway == nil {
		return netip.AddrPort{}
	}
	return m.gateway.addr
}

// RootPEM is the trust bundle of the mesh.
func (m *Mesh) RootPEM() []byte { return certPEM(m.authority.root.Raw) }

// TrustDomain and ClusterID are those of the configuration.
func (m *Mesh) TrustDomain() string { return m.cfg.TrustDomain }

// ClusterID is the one that clients must name.
func (m *Mesh) ClusterID() string { return m.cfg.ClusterID }

// SPIFFE is the identity of a service account.
func (m *Mesh) SPIFFE(namespace, account string) string {
	return m.authority.spiffe(namespace, account)
}

// MintToken makes a token with which a service account can join.
func (m *Mesh) MintToken(account, namespace string) string {
	return m.Mint(Claims{ServiceAccount: account, Namespace: namespace})
}

// Mint makes a token of any kind.
func (m *Mesh) Mint(c Claims) string {
	if c.Audience == "" {
		c.Audience = AudienceCA
	}
	if c.TTL == 0 {
		c.TTL = m.cfg.TokenTTL
	}
	return m.mint.token(c)
}

// VerifyToken returns the service account that a token of this mesh speaks for.
func (m *Mesh) VerifyToken(token, audience string) (account, namespace string, err error) {
	return m.mint.verify(token, audience)
}

// RefuseTokens makes istiod refuse every token, or take them again.
// Certificates stay good.
func (m *Mesh) RefuseTokens(on bool) { m.refuseTokens.Store(on) }

// SetCertTTL changes the life of the certificates that are signed from now on.
func (m *Mesh) SetCertTTL(d time.Duration) { m.certTTL.Store(int64(d)) }

// Signed counts the certificates that clients were given.
func (m *Mesh) Signed() int64 { return m.signed.Load() }

// IssueSPIFFE makes a key pair for an identity, for another server or client
// of this mesh.
func (m *Mesh) IssueSPIFFE(id string, ttl time.Duration) (KeyPair, error) {
	c, err := m.authority.issue(names{uris: []string{id}}, ttl)
	if err != nil {
		return KeyPair{}, err
	}
	return m.authority.keyPair(c)
}

// IssueServer makes a certificate for a server known by DNS names and IP
// addresses, that the mesh's root vouches for.
func (m *Mesh) IssueServer(hosts ...string) (tls.Certificate, error) {
	var n names
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			n.ips = append(n.ips, ip)
		} else {
			n.dns = append(n.dns, h)
		}
	}
	c, err := m.authority.issue(n, defaultCertTTL)
	if err != nil {
		return tls.Certificate{}, err
	}
	return *c, nil
}

// Endpoints returns where the endpoints of a service port listen, in order.
func (m *Mesh) Endpoints(name, namespace string, port uint16) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.services[(&Service{Name: name, Namespace: namespace}).host()]
	if d == nil {
		return nil
	}
	var out []netip.AddrPort
	for _, where := range d.placed().where {
		if a, ok := where[port]; ok {
			out = append(out, a)
		}
	}
	return out
}

// VIPs returns the addresses of a service.
func (m *Mesh) VIPs(name, namespace string) []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.services[(&Service{Name: name, Namespace: namespace}).host()]; d != nil {
		return slices.Clone(d.VIPs)
	}
	return nil
}
