// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

const (
	// maxDomains is LINK_SEARCH_DOMAINS_MAX of systemd-resolved: one more, and the
	// link's whole list is emptied.
	maxDomains = 256

	// claimBudget is how many we use: a few are left for who names one by hand.
	claimBudget = 250

	// maxName is the length of a domain name as text (RFC 1035, 2.3.4).
	maxName = 253
)

// A Claim is a domain whose names are looked up by us.
type Claim struct {
	Domain string
	Search bool // it also completes single labels, as resolv.conf's search does
}

// An Unclaimed is a name of the mesh that the host's resolver will not ask us for.
type Unclaimed struct{ Name, Reason string }

// A ServiceName is one of the cluster, which has the short name Name.Namespace too.
type ServiceName struct{ Name, Namespace string }

// Names are what a mesh has, and what else claims look at.
type Names struct {
	ClusterDomain string        // empty: cluster.local
	Services      []ServiceName // of the cluster
	Hosts         []string      // other hosts of the mesh, with "*." before a wildcard
	Names         []string      // claimed because the user says so: exactly
	Search        []string      // namespaces whose services are found by a single label
	Taken         []string      // domains that other links of this host have
	Hostname      string        // of this host
}

// reservedNamespaces are last labels that mean something on a host or in its network
// (RFC 2606, RFC 6761, RFC 8375 and common use) though no registry has them.
var reservedNamespaces = map[string]bool{
	"local": true, "localhost": true, "test": true, "example": true, "invalid": true, "onion": true, "arpa": true,
	"internal": true, "corp": true, "home": true, "lan": true, "mail": true, "intranet": true, "private": true,
}

// Claims says which domains to claim for a mesh, and which of its names stay without.
//
// The cluster's own domain comes first, and "svc", which is no public suffix. Other
// hosts are claimed each by itself; if there are too many, neighbours are folded into
// their common parent, but never into a public suffix. The short form SERVICE.NAMESPACE
// is claimed only where the namespace is no name of the outside world: a namespace
// called "dev" must not own every site under .dev, nor a service "google" in "com" that
// of another.
func Claims(n Names) (claims []Claim, left []Unclaimed) {
	domain := normal(n.ClusterDomain)
	if domain == "" {
		domain = "cluster.local"
	}
	b := claimBuilder{have: map[string]bool{}}
	b.add(domain)
	b.add("svc")
	for _, ns := range n.Search {
		if s := normal(ns) + ".svc." + domain; s != "" {
			b.claims = append(b.claims, Claim{Domain: s, Search: true})
		}
	}
	for _, name := range n.Names {
		b.add(normal(name))
	}
	namespaces := b.namespaces(n)
	b.hosts(n.Hosts, len(namespaces))
	b.short(namespaces)
	slices.SortFunc(b.left, func(x, y Unclaimed) int { return cmp.Compare(x.Name, y.Name) })
	return b.claims, b.left
}

type claimBuilder struct {
	claims []Claim
	have   map[string]bool
	left   []Unclaimed
}

func (b *claimBuilder) add(domain string) {
	if domain == "" || b.covered(domain) {
		return
	}
	b.have[domain] = true
	b.claims = append(b.claims, Claim{Domain: domain})
}

// covered reports whether a claim that stands has that name already.
func (b *claimBuilder) covered(name string) bool {
	for name != "" {
		if b.have[name] {
			return true
		}
		name = parent(name)
	}
	return false
}

func (b *claimBuilder) leave(name, reason string) {
	b.left = append(b.left, Unclaimed{name, reason})
}

func (b *claimBuilder) room() int { return claimBudget - len(b.claims) }

const overBudget = "the resolver takes no more domains"

// hosts claims names outside the cluster, and leaves room for some others.
func (b *claimBuilder) hosts(list []string, others int) {
	hosts := map[string]bool{}
	for _, h := range list {
		name := normal(strings.TrimPrefix(h, "*."))
		suffix, icann := publicsuffix.PublicSuffix(name)
		switch {
		case name == "":
			b.leave(h, "not a domain name")
		case b.covered(name):
		case !strings.Contains(name, "."):
			b.leave(h, "the resolver sends no single label to a server")
		case icann && suffix == name:
			b.leave(h, name+" is a public domain")
		default:
			hosts[name] = true
		}
	}
	// A name below another comes along.
	for h := range hosts {
		for p := parent(h); p != ""; p = parent(p) {
			if hosts[p] {
				delete(hosts, h)
				break
			}
		}
	}
	// Namespaces take at least one each, but not more than half.
	room := b.room()
	fold(hosts, room-min(others, room/2))
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		if b.room() > 0 {
			b.add(h)
		} else {
			b.leave(h, overBudget)
		}
	}
}

// fold makes the set smaller until it has at most the wanted size, or cannot be: the
// deepest names first, and of those the largest families.
func fold(hosts map[string]bool, most int) {
	depth := 0
	for h := range hosts {
		depth = max(depth, strings.Count(h, "."))
	}
	for ; depth > 1 && len(hosts) > most; depth-- {
		families := map[string][]string{}
		for h := range hosts {
			if p := parent(h); strings.Count(h, ".") == depth && !public(p) {
				families[p] = append(families[p], h)
			}
		}
		order := slices.SortedFunc(maps.Keys(families), func(a, b string) int {
			return cmp.Or(cmp.Compare(len(families[b]), len(families[a])), cmp.Compare(a, b))
		})
		for _, p := range order {
			if len(hosts) <= most || len(families[p]) < 2 && !hosts[p] {
				break
			}
			for _, h := range families[p] {
				delete(hosts, h)
			}
			hosts[p] = true
		}
	}
}

// public reports whether nobody in particular owns the names below a domain.
func public(domain string) bool {
	suffix, _ := publicsuffix.PublicSuffix(domain)
	return suffix == domain
}

// namespaces returns the services of each namespace whose short names may be claimed.
func (b *claimBuilder) namespaces(n Names) map[string][]string {
	taken := map[string]bool{}
	for _, d := range append(slices.Clone(n.Taken), n.Hostname) {
		d = normal(strings.TrimPrefix(d, "~"))
		taken[d[strings.LastIndexByte(d, '.')+1:]] = true
	}
	free, judged := map[string][]string{}, map[string]string{}
	for _, s := range n.Services {
		ns, name := normal(s.Namespace), normal(s.Name)
		if ns == "" || name == "" || strings.Contains(ns, ".") {
			continue
		}
		reason, seen := judged[ns]
		if !seen {
			reason = shadows(ns, taken)
			judged[ns] = reason
			if reason != "" {
				b.leave("*."+ns, reason+": use NAME."+ns+".svc")
			}
		}
		if reason == "" && !b.covered(name+"."+ns) {
			free[ns] = append(free[ns], name+"."+ns)
		}
	}
	return free
}

// shadows says what a namespace would hide, if anything.
func shadows(ns string, taken map[string]bool) string {
	switch _, icann := publicsuffix.PublicSuffix(ns); {
	case icann:
		return ns + " is a public domain"
	case reservedNamespaces[ns]:
		return ns + " is reserved"
	case taken[ns]:
		return ns + " is a domain of this host's network"
	}
	return ""
}

// short claims SERVICE.NAMESPACE, each service by itself while there is room, else
// whole namespaces, the largest first.
func (b *claimBuilder) short(namespaces map[string][]string) {
	total := 0
	for ns, list := range namespaces {
		slices.Sort(list)
		namespaces[ns] = slices.Compact(list)
		total += len(namespaces[ns])
	}
	order := slices.SortedFunc(maps.Keys(namespaces), func(x, y string) int {
		return cmp.Or(cmp.Compare(len(namespaces[y]), len(namespaces[x])), cmp.Compare(x, y))
	})
	room := b.room()
	var whole, single []string
	for _, ns := range order {
		if total > room && len(namespaces[ns]) > 1 {
			whole = append(whole, ns)
			total -= len(namespaces[ns]) - 1
			continue
		}
		single = append(single, namespaces[ns]...)
	}
	slices.Sort(whole)
	slices.Sort(single)
	for _, name := range append(whole, single...) {
		switch {
		case b.room() > 0:
			b.add(name)
		case strings.Contains(name, "."):
			b.leave(name, overBudget)
		default:
			b.leave("*."+name, overBudget)
		}
	}
}

// parent returns what stands after the first dot.
func parent(name string) string {
	_, p, _ := strings.Cut(name, ".")
	return p
}

// normal returns a domain name in lower case and without a last dot, or nothing if it
// is none.
func normal(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || len(name) > maxName {
		return ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return ""
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' {
				return ""
			}
		}
	}
	return name
}
