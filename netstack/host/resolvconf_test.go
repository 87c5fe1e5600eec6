// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var resolvConfOptions = cmp.Options{
	cmpopts.IgnoreUnexported(ResolvConf{}), cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty(),
}

func servers(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
	}
	return out
}

func TestParseResolvConf(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       ResolvConf
	}{
		{"empty", "", ResolvConf{Servers: servers("127.0.0.1")}},
		{
			"usual", "# by hand\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:2 timeout:1\n",
			ResolvConf{Servers: servers("10.0.0.1", "fe80::1%eth0"), Search: []string{"a.example", "b.example"}, Options: []string{"ndots:2", "timeout:1"}},
		},
		{"three at most", "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4", ResolvConf{Servers: servers("1.1.1.1", "1.1.1.2", "1.1.1.3")}},
		{"last of domain and search", "search a b\ndomain c.example.\n", ResolvConf{Servers: servers("127.0.0.1"), Search: []string{"c.example"}}},
		{"last is search", "domain c\nsearch a. b .\n", ResolvConf{Servers: servers("127.0.0.1"), Search: []string{"a", "b"}}},
		{"options add up", "options a\noptions b a\n", ResolvConf{Servers: servers("127.0.0.1"), Options: []string{"a", "b"}}},
		{
			"comments and rubbish", "; nameserver 9.9.9.9\n#nameserver 9.9.9.9\nnameserver\nnameserver x\nnameserver 10.0.0.256\n\tnameserver 8.8.8.8 # one\nsortlist 1.2.3.4\n",
			ResolvConf{Servers: servers("8.8.8.8")},
		},
		{"crlf", "nameserver 1.1.1.1\r\nsearch a\r\n", ResolvConf{Servers: servers("1.1.1.1"), Search: []string{"a"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, ParseResolvConf([]byte(row.text)), resolvConfOptions); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoopbackServers(t *testing.T) {
	for _, row := range []struct {
		text    string
		missing bool
		want    []string
	}{
		{"nameserver 127.0.0.53\nnameserver 127.0.0.53\nnameserver 10.0.0.1", false, []string{"127.0.0.53"}},
		{"nameserver ::1\nnameserver 127.0.1.1", false, []string{"::1", "127.0.1.1"}},
		{"nameserver 10.0.0.1", false, nil},
		{"search a", false, nil}, // our file stands over it
		{"", true, []string{"127.0.0.1"}},
	} {
		c := ParseResolvConf([]byte(row.text))
		c.Missing = row.missing
		var got []string
		for _, a := range c.Loopback() {
			got = append(got, a.String())
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%q: got %v, want %v", row.text, got, row.want)
		}
	}
}

func TestPrivateResolvConf(t *testing.T) {
	c := ParseResolvConf([]byte("nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch a b\noptions ndots:5\n"))
	got := string(c.private(ResolverAddr))
	if want := "nameserver 192.0.0.1\nsearch a b\noptions ndots:5 edns0\n"; !strings.HasSuffix(got, want) || strings.Count(got, "nameserver ") != 1 {
		t.Errorf("got %q", got)
	}
	if got := string(ParseResolvConf([]byte("options edns0")).private(ResolverAddr)); strings.Count(got, "edns0") != 1 {
		t.Errorf("got %q", got)
	}
}

// TestResolversFollow: written in place, replaced, taken away, and back.
func TestResolversFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(path, text string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Unix(1_700_000_000, 0)
	r := NewResolvers(path)
	want := func(what string, list ...string) {
		t.Helper()
		if got := r.Servers(); !slices.Equal(got, servers(list...)) {
			t.Errorf("%s: got %v", what, got)
		}
	}
	want("missing at first", "127.0.0.1")
	write(path, "nameserver 10.0.0.1\n", then)
	want("made", "10.0.0.1")
	write(path, "nameserver 10.0.0.2\n", then.Add(time.Second))
	want("written in place", "10.0.0.2")
	write(path+".new", "nameserver 10.0.0.3\n", then.Add(time.Second))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	want("replaced, of the same size and time", "10.0.0.3")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("taken away", "10.0.0.3")
	write(path, "nameserver 10.0.0.4\n", then)
	want("back", "10.0.0.4")
	if r.Config().Missing {
		t.Error("missing")
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 10.0.0.1\nsearch a b\noptions ndots:5\n"))
	f.Add([]byte("domain .\nnameserver fe80::1%\noptions\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := ParseResolvConf(text)
		if len(c.Servers) == 0 || len(c.Servers) > maxNameservers || len(c.Search) > maxSearch || len(c.Options) > maxSearch {
			t.Fatalf("out of bounds: %+v", c)
		}
		// What is written for the program says the same, but for the servers.
		again := ParseResolvConf(c.private(ResolverAddr))
		if !slices.Equal(again.Servers, []netip.AddrPort{netip.AddrPortFrom(ResolverAddr, 53)}) {
			t.Errorf("servers %v", again.Servers)
		}
		if !slices.Equal(again.Search, c.Search) {
			t.Errorf("search %q, was %q", again.Search, c.Search)
		}
	})
}
