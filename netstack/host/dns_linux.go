// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// StubAddr is where our server answers in the mode that writes resolv.conf. Being on
// the loopback, it refuses at once when we are gone, so that libc asks the next server
// within milliseconds; an address behind the TUN would cost seconds.
var StubAddr = netip.AddrFrom4([4]byte{127, 77, 0, 53})

// A DNSConfig says how names of the mesh get into the host's resolver.
type DNSConfig struct {
	State *State  // the session's; stays the caller's
	Mode  DNSMode // empty: auto
	Index int     // of the TUN, which is the resolver's link

	// Server is where the caller answers already. In resolv.conf its port can only
	// be 53.
	Server netip.AddrPort

	ResolvConf string // empty: ResolvConfPath

	Logger *slog.Logger // nil: none
}

// A DNS is what the host's resolver has been told of us. Its methods are safe for
// concurrent use.
type DNS struct {
	mode     DNSMode
	warning  string
	path     string
	resolved *resolvedDNS // in mode resolved
	file     *fileDNS     // in mode resolvconf
}

// OpenDNS tells the host's resolver of our server. In mode resolved nothing is claimed
// yet: that is for [DNS.Claim].
func OpenDNS(ctx context.Context, cfg DNSConfig) (*DNS, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = ResolvConfPath
	}
	d := &DNS{mode: cfg.Mode, path: cfg.ResolvConf}
	if d.mode == "" || d.mode == DNSAuto {
		text, _ := readSmall(cfg.ResolvConf)
		nss, _ := os.ReadFile("/etc/nsswitch.conf")
		_, uses := withoutResolve(nss)
		w := dnsWorld{servers: ParseResolvConf(text).Servers, resolved: resolvedRuns(), nssResolved: uses}
		if d.mode, d.warning = w.detect(); d.warning != "" {
			cfg.Logger.Warn(d.warning)
		}
	}
	var err error
	switch d.mode {
	case DNSResolved:
		d.resolved, err = openResolved(ctx, cfg.Index, cfg.Server, cfg.Logger)
	case DNSResolvConf:
		if cfg.Server.Port() != 53 {
			return nil, fmt.Errorf("dns mode %s: server %v: resolv.conf knows no port but 53", d.mode, cfg.Server)
		}
		d.file, err = openFileDNS(cfg.State, cfg.ResolvConf, cfg.Server.Addr(), cfg.Logger)
	case DNSNone:
	default:
		_, err = ParseDNSMode(string(d.mode))
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Mode returns the mode that is in use, never auto, and who does not see names of the
// mesh under it.
func (d *DNS) Mode() (mode DNSMode, warning string) {
	if d.file != nil && d.file.lost() {
		return d.mode, "resolv.conf is written by others again and again: it is theirs, and names of the mesh are lost"
	}
	return d.mode, d.warning
}

// Claim makes the domains those that we are asked for, in place of the call's before.
// In resolv.conf there are none: we are asked for everything. It does nothing if they
// are the same, but names of a mesh that comes up arrive in crowds: the caller waits
// for quiet.
func (d *DNS) Claim(ctx context.Context, claims []Claim) error {
	if d.resolved == nil {
		return nil
	}
	d.resolved.mu.Lock()
	same := slices.Equal(d.resolved.claims, claims)
	d.resolved.mu.Unlock()
	if same {
		return nil
	}
	return d.resolved.setDomains(ctx, claims)
}

// Taken returns the domains that other links of the host have, for [Names.Taken].
func (d *DNS) Taken(ctx context.Context) ([]string, error) {
	if d.resolved == nil {
		return nil, nil
	}
	return d.resolved.taken(ctx)
}

// Upstream returns the host's own servers, best first: for names that we are asked for
// and that the mesh does not have. They must be asked by marked sockets.
func (d *DNS) Upstream() []netip.AddrPort {
	switch {
	case d.resolved != nil:
		return d.resolved.servers()
	case d.file != nil:
		return d.file.servers()
	}
	return nil
}

// Run keeps what the host's resolver was told true until ctx ends.
func (d *DNS) Run(ctx context.Context) error {
	switch {
	case d.resolved != nil:
		return d.resolved.run(ctx)
	case d.file != nil:
		return d.file.run(ctx)
	}
	<-ctx.Done()
	return nil
}

// Reassert tells the resolver everything again, as after a sleep.
func (d *DNS) Reassert(ctx context.Context) error {
	if d.resolved != nil {
		return d.resolved.reassert(ctx)
	}
	return nil
}

// Prove looks a name of the mesh up as programs do, and reports with a [*ProofError]
// if the answer has none of the addresses that it should.
func (d *DNS) Prove(ctx context.Context, name string, want []netip.Addr) error {
	var got []netip.Addr
	var err error
	switch {
	case d.resolved != nil:
		got, err = d.resolved.prove(ctx, name)
	case d.file != nil:
		got, err = d.lookup(ctx, name)
	default:
		return nil
	}
	if slices.ContainsFunc(got, func(a netip.Addr) bool { return slices.Contains(want, a) }) {
		return nil
	}
	p := &ProofError{Layer: "name", What: name, Got: "no answer", Err: err, Hint: "try --dns=none, or `nasp-tun dns query " + name + "`"}
	if len(got) > 0 {
		words := make([]string, len(got))
		for i, a := range got {
			words[i] = a.String()
		}
		p.Got = "is " + strings.Join(words, ", ")
	}
	return p
}

// lookup asks the first server of resolv.conf, as libc does, with its options and
// search list.
func (d *DNS) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	text, err := readSmall(d.path)
	if err != nil {
		return nil, err
	}
	server := ParseResolvConf(text).Servers[0]
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.String())
	}}
	return r.LookupNetIP(ctx, "ip", name+".")
}

// Close undoes what the resolver was told. It must come before the device goes.
func (d *DNS) Close(ctx context.Context) error {
	var err error
	if d.resolved != nil {
		err = d.resolved.close(ctx)
	}
	if d.file != nil {
		err = errors.Join(err, d.file.close())
	}
	return err
}
