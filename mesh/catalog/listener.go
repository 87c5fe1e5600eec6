// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// A Listener is a listener with its filter chains arranged for matching.
type Listener struct {
	Config *resource.Listener
	only   *resource.FilterChain // the one chain, when it has no condition
	ports  map[uint16]byPrefix
	tls    bool // see Inspect
	http   bool
}

// A Sniff is what the first bytes of a connection told.
type Sniff struct {
	// Transport is "tls" or "raw_buffer"; empty means the latter, as for
	// Envoy when no listener filter says otherwise.
	Transport  string
	ServerName string
	// Protocols are the ALPN protocols that a TLS client offers, or the one
	// ("http/1.0", "http/1.1", "h2c") that the HTTP inspector saw.
	Protocols []string
}

// The levels of the match, each with the values that the chains name there.
// The empty string stands for chains without that condition.
type (
	byPrefix struct {
		bits4, bits6 []int // prefix lengths that occur, longest first
		next         map[netip.Prefix]byServerName
		any          byServerName // chains without prefix ranges
	}
	byServerName map[string]byTransport // suffixes begin with "."
	byTransport  map[string]byProtocol
	byProtocol   map[string]*resource.FilterChain
)

func newListener(cfg *resource.Listener) *Listener {
	l := &Listener{Config: cfg}
	if len(cfg.Chains) == 1 && unconditional(&cfg.Chains[0].Match) {
		l.only = cfg.Chains[0]
		return l
	}
	l.ports = make(map[uint16]byPrefix)
	for _, chain := range cfg.Chains {
		m := &chain.Match
		if len(m.Unsupported) > 0 {
			continue
		}
		l.add(chain)
		sniffed := m.TransportProtocol != "" || len(m.ServerNames) > 0 || len(m.ApplicationProtocols) > 0
		l.tls = l.tls || cfg.TLSInspector && sniffed
		l.http = l.http || cfg.HTTPInspector && m.TransportProtocol != "tls" && slices.ContainsFunc(m.ApplicationProtocols, plaintextHTTP)
	}
	for _, p := range l.ports {
		slices.SortFunc(p.bits4, func(a, b int) int { return b - a })
		slices.SortFunc(p.bits6, func(a, b int) int { return b - a })
	}
	return l
}

func unconditional(m *resource.ChainMatch) bool {
	return m.DestinationPort == 0 && len(m.Prefixes) == 0 && len(m.ServerNames) == 0 &&
		m.TransportProtocol == "" && len(m.ApplicationProtocols) == 0 && len(m.Unsupported) == 0
}

// plaintextHTTP reports whether an application protocol is one that the HTTP
// inspector finds, rather than the TLS inspector.
func plaintextHTTP(proto string) bool {
	return proto == "http/1.0" || proto == "http/1.1" || proto == "h2c"
}

// add enters a chain under every combination of its conditions. Of two chains
// with the same conditions the first stays; Envoy rejects such a listener.
func (l *Listener) add(chain *resource.FilterChain) {
	m := &chain.Match
	p := l.ports[m.DestinationPort]
	if len(m.Prefixes) == 0 {
		if p.any == nil {
			p.any = make(byServerName)
		}
		p.any.add(chain)
	}
	for _, prefix := range m.Prefixes {
		prefix = prefix.Masked()
		if p.next == nil {
			p.next = make(map[netip.Prefix]byServerName)
		}
		if p.next[prefix] == nil {
			p.next[prefix] = make(byServerName)
			bits := &p.bits6
			if prefix.Addr().Is4() {
				bits = &p.bits4
			}
			if !slices.Contains(*bits, prefix.Bits()) {
				*bits = append(*bits, prefix.Bits())
			}
		}
		p.next[prefix].add(chain)
	}
	l.ports[m.DestinationPort] = p
}

func (names byServerName) add(chain *resource.FilterChain) {
	m := &chain.Match
	for _, name := range orAny(m.ServerNames) {
		name = strings.TrimPrefix(name, "*")
		transports := names[name]
		if transports == nil {
			transports = make(byTransport)
			names[name] = transports
		}
		protocols := transports[m.TransportProtocol]
		if protocols == nil {
			protocols = make(byProtocol)
			transports[m.TransportProtocol] = protocols
		}
		for _, proto := range orAny(m.ApplicationProtocols) {
			if protocols[proto] == nil {
				protocols[proto] = chain
			}
		}
	}
}

func orAny(list []string) []string {
	if len(list) == 0 {
		return []string{""}
	}
	return list
}

// Inspect reports whether the choice of a chain depends on the first bytes:
// on those of a TLS hello, or on those of a plain HTTP request. When neither,
// nothing need be read before Match.
func (l *Listener) Inspect() (tls, http bool) { return l.tls, l.http }

// Match returns the chain for a connection, nil to close it.
//
// Conditions are judged one after the other: destination port, destination
// address, server name, transport protocol, application protocols. At each,
// only the chains with the most specific value that matches stay in, and
// there is no way back: when no chain is left further down, the default chain
// serves, even if a less specific one would have fitted. That is Envoy's rule
// (config.listener.v3.FilterChainMatch).
func (l *Listener) Match(dst netip.AddrPort, s *Sniff) *resource.FilterChain {
	if l.only != nil {
		return l.only
	}
	p, ok := l.ports[dst.Port()]
	if !ok {
		p, ok = l.ports[0]
	}
	if ok {
		if s == nil {
			s = &Sniff{}
		}
		if chain := p.match(dst.Addr().Unmap(), s); chain != nil {
			return chain
		}
	}
	return l.Config.Default
}

func (p *byPrefix) match(addr netip.Addr, s *Sniff) *resource.FilterChain {
	name := strings.ToLower(s.ServerName) // does not allocate when nothing changes
	lengths := p.bits4
	if !addr.Is4() {
		lengths = p.bits6
	}
	for _, bits := range lengths {
		prefix, err := addr.Prefix(bits)
		if err != nil {
			continue
		}
		if names, ok := p.next[prefix]; ok {
			return names.match(name, s)
		}
	}
	return p.any.match(name, s)
}

func (names byServerName) match(name string, s *Sniff) *resource.FilterChain {
	if transports, ok := names[name]; ok && name != "" {
		return transports.match(s)
	}
	for name != "" {
		dot := strings.IndexByte(name[1:], '.')
		if dot < 0 {
			break
		}
		name = name[1+dot:]
		if transports, ok := names[name]; ok {
			return transports.match(s)
		}
	}
	return names[""].match(s)
}

func (t byTransport) match(s *Sniff) *resource.FilterChain {
	transport := s.Transport
	if transport == "" {
		transport = "raw_buffer"
	}
	if protocols, ok := t[transport]; ok {
		return protocols.match(s)
	}
	return t[""].match(s)
}

func (p byProtocol) match(s *Sniff) *resource.FilterChain {
	for _, proto := range s.Protocols {
		if chain := p[proto]; chain != nil {
			return chain
		}
	}
	return p[""]
}

// managers yields the HTTP connection managers of an outbound listener.
func (l *Listener) managers() iter.Seq[*resource.HTTPManager] {
	return func(yield func(*resource.HTTPManager) bool) {
		for chain := range l.chains() {
			if chain.HTTP != nil && !yield(chain.HTTP) {
				return
			}
		}
	}
}

// chains yields the chains of an outbound listener, the default one last.
func (l *Listener) chains() iter.Seq[*resource.FilterChain] {
	return func(yield func(*resource.FilterChain) bool) {
		if !l.Config.Outbound {
			return
		}
		for _, chain := range l.Config.Chains {
			if !yield(chain) {
				return
			}
		}
		if l.Config.Default != nil {
			yield(l.Config.Default)
		}
	}
}

// prefixes returns the destination ranges that chains of the listener name. A
// range of everything is no statement about what belongs to the mesh.
func (l *Listener) prefixes() []netip.Prefix {
	set := make(map[netip.Prefix]struct{})
	for _, chain := range l.Config.Chains {
		for _, p := range chain.Match.Prefixes {
			if p.Bits() > 0 {
				set[p.Masked()] = struct{}{}
			}
		}
	}
	return slices.Collect(maps.Keys(set))
}
