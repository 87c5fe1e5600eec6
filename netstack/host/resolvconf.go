// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// ResolvConfPath is where the machine's resolver is configured.
const ResolvConfPath = "/etc/resolv.conf"

const (
	// maxNameservers is MAXNS of resolv.conf(5): libc ignores those after it.
	maxNameservers = 3

	// maxResolvConf bounds what is read: real files have some hundred bytes.
	maxResolvConf = 64 << 10

	// maxSearch bounds search list and options: each entry costs a query.
	maxSearch = 32
)

// A ResolvConf is what resolv.conf(5) says.
type ResolvConf struct {
	Missing bool             // there is no such file: libc asks 127.0.0.1
	Servers []netip.AddrPort // never empty: 127.0.0.1:53 if none is named
	Search  []string         // as written, without a last dot
	Options []string         // as written: "ndots:5", "edns0", …

	implied bool // Servers is what libc falls back to, not what the file says
}

// ParseResolvConf reads resolv.conf(5) as libc does: lines that it does not
// understand are skipped, the last of `search` and `domain` stands, options
// add up, and only the first three servers count.
func ParseResolvConf(text []byte) ResolvConf {
	var c ResolvConf
	for line := range bytes.Lines(text) {
		if len(line) == 0 || line[0] == '#' || line[0] == ';' {
			continue
		}
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			a, err := netip.ParseAddr(f[1])
			if err == nil && len(c.Servers) < maxNameservers {
				c.Servers = append(c.Servers, netip.AddrPortFrom(a, 53))
			}
		case "domain":
			c.Search = searchList(f[1:2])
		case "search":
			c.Search = searchList(f[1:])
		case "options":
			for _, o := range f[1:] {
				if len(c.Options) < maxSearch && !slices.Contains(c.Options, o) {
					c.Options = append(c.Options, o)
				}
			}
		}
	}
	if len(c.Servers) == 0 {
		c.Servers, c.implied = []netip.AddrPort{localServer}, true
	}
	return c
}

// localServer is asked by libc when no server is named.
var localServer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)

func searchList(fields []string) []string {
	var list []string
	for _, s := range fields {
		s = strings.TrimSuffix(s, ".")
		if s != "" && len(list) < maxSearch {
			list = append(list, s)
		}
	}
	return list
}

// Loopback returns those servers that only exist on the host's own loopback: what
// their addresses lead to in another network namespace is for us to say. 127.0.0.1 as
// the fall-back counts only where there is no file to mount ours over; else the program
// may want that port.
func (c ResolvConf) Loopback() []netip.Addr {
	if c.implied && !c.Missing {
		return nil
	}
	var list []netip.Addr
	for _, s := range c.Servers {
		if a := s.Addr().Unmap(); a.IsLoopback() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// private returns the file for a private network: one server, since musl asks
// all in parallel, and the rest as on the host, since names must not depend on
// ndots that we chose.
func (c ResolvConf) private(server netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("# nasp-tun: mesh names, and the host's resolvers for all others\n")
	b.WriteString("nameserver " + server.String() + "\n")
	if len(c.Search) > 0 {
		b.WriteString("search " + strings.Join(c.Search, " ") + "\n")
	}
	options := slices.Clone(c.Options)
	if !slices.Contains(options, "edns0") {
		options = append(options, "edns0")
	}
	b.WriteString("options " + strings.Join(options, " ") + "\n")
	return b.Bytes()
}

// Resolvers follows a resolv.conf: each question to it looks whether the file
// has changed since, so that a VPN that came up is heeded at once. It is safe for
// concurrent use.
type Resolvers struct {
	path string

	mu   sync.Mutex
	seen fileID
	conf ResolvConf
}

// fileID tells one state of a file from another.
type fileID struct {
	info os.FileInfo // nil: no such file
	size int64
	at   time.Time
}

func (a fileID) same(b fileID) bool {
	if a.info == nil || b.info == nil {
		return a.info == b.info
	}
	return os.SameFile(a.info, b.info) && a.size == b.size && a.at.Equal(b.at)
}

// NewResolvers follows the file at path; empty means [ResolvConfPath].
func NewResolvers(path string) *Resolvers {
	if path == "" {
		path = ResolvConfPath
	}
	r := &Resolvers{path: path}
	r.seen, r.conf = r.read()
	return r
}

// Servers returns the servers to ask now, best first.
func (r *Resolvers) Servers() []netip.AddrPort { return r.Config().Servers }

// Config returns what the file says now. A file that cannot be read, as for a
// moment while it is replaced, leaves the last one in force.
func (r *Resolvers) Config() ResolvConf {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.stat(); !now.same(r.seen) {
		seen, conf := r.read()
		if !conf.Missing || r.conf.Missing {
			r.conf = conf
		}
		r.seen = seen
	}
	return r.conf
}

func (r *Resolvers) stat() fileID {
	info, err := os.Stat(r.path)
	if err != nil {
		return fileID{}
	}
	return fileID{info, info.Size(), info.ModTime()}
}

// read takes the identity before the text, so that a change between the two is
// seen the next time.
func (r *Resolvers) read() (fileID, ResolvConf) {
	id := r.stat()
	f, err := os.Open(r.path)
	if err != nil {
		c := ParseResolvConf(nil)
		c.Missing = true
		return id, c
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	c := ParseResolvConf(text)
	c.Missing = err != nil
	return id, c
}
