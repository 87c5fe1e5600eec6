// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// services makes names of "a.x b.x".
func services(list string) (out []ServiceName) {
	for f := range strings.FieldsSeq(list) {
		name, ns, _ := strings.Cut(f, ".")
		out = append(out, ServiceName{name, ns})
	}
	return out
}

// numbered makes n names by a format.
func numbered(n int, format string) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

func TestClaims(t *testing.T) {
	for _, row := range []struct {
		name   string
		in     Names
		claims string
		left   string
	}{
		{"nothing", Names{}, "cluster.local svc", ""},
		{"another domain", Names{ClusterDomain: "K8s.Example.com."}, "k8s.example.com svc", ""},
		{"short names", Names{Services: services("echo.testing web.testing pay.default")}, "cluster.local svc echo.testing pay.default web.testing", ""},
		{
			// Telepresence's issue 2395: every site under .dev was lost.
			"a namespace called dev",
			Names{Services: services("echo.dev google.com a.prod a.io b.app echo.staging")},
			"cluster.local svc echo.staging",
			"*.app: app is a public domain: use NAME.app.svc\n*.com: com is a public domain: use NAME.com.svc\n*.dev: dev is a public domain: use NAME.dev.svc\n" +
				"*.io: io is a public domain: use NAME.io.svc\n*.prod: prod is a public domain: use NAME.prod.svc",
		},
		{"by name", Names{Services: services("echo.dev"), Names: []string{"echo.dev"}}, "cluster.local svc echo.dev", "*.dev: dev is a public domain: use NAME.dev.svc"},
		{
			"names of this host's network",
			Names{Services: services("a.corp a.lab a.bureau a.home2"), Taken: []string{"~.", "~lab", "eng.bureau"}, Hostname: "box.home2"},
			"cluster.local svc",
			"*.bureau: bureau is a domain of this host's network: use NAME.bureau.svc\n*.corp: corp is reserved: use NAME.corp.svc\n" +
				"*.home2: home2 is a domain of this host's network: use NAME.home2.svc\n*.lab: lab is a domain of this host's network: use NAME.lab.svc",
		},
		{
			"hosts",
			Names{Hosts: []string{"API.example.com", "*.wild.example.org", "x.wild.example.org", "wild.example.org", "a.b.svc.cluster.local", "*.com", "*.co.uk", "db", "bad name", "a..b", ""}},
			"cluster.local svc api.example.com wild.example.org",
			": not a domain name\n*.co.uk: co.uk is a public domain\n*.com: the resolver sends no single label to a server\na..b: not a domain name\nbad name: not a domain name\ndb: the resolver sends no single label to a server",
		},
		{"search", Names{Search: []string{"testing"}}, "cluster.local svc +testing.svc.cluster.local", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			claims, left := Claims(row.in)
			var got, lost []string
			for _, c := range claims {
				if c.Search {
					c.Domain = "+" + c.Domain
				}
				got = append(got, c.Domain)
			}
			for _, l := range left {
				lost = append(lost, l.Name+": "+l.Reason)
			}
			if diff := cmp.Diff(row.claims, strings.Join(got, " ")); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(row.left, strings.Join(lost, "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestClaimsFit(t *testing.T) {
	var many []ServiceName
	for i := range 300 {
		many = append(many, ServiceName{fmt.Sprintf("s%d", i), "big"}, ServiceName{"one", fmt.Sprintf("small%d", i%100)})
	}
	crowd := []ServiceName{}
	for i := range 300 {
		crowd = append(crowd, ServiceName{"one", fmt.Sprintf("ns%d", i)})
	}
	for _, row := range []struct {
		name       string
		in         Names
		want, miss []string // among the claims, and not
		left       int
	}{
		{"300 services of one namespace", Names{Services: many}, []string{"big", "one.small7"}, []string{"s1.big"}, 0},
		{"300 namespaces", Names{Services: crowd}, []string{"one.ns0"}, nil, 300 - 248},
		{"hosts fold into their parent", Names{Hosts: numbered(300, "h%d.eu.example.com")}, []string{"eu.example.com"}, []string{"h1.eu.example.com"}, 0},
		{"the deepest first", Names{Hosts: append(numbered(200, "h%d.a.b.example.com"), numbered(100, "h%d.example.org")...)}, []string{"a.b.example.com", "h9.example.org"}, []string{"example.org", "example.com"}, 0},
		{"no public suffix", Names{Hosts: numbered(300, "shop%d.co.uk")}, []string{"shop0.co.uk"}, []string{"co.uk", "uk"}, 300 - 248},
		{"no private suffix either", Names{Hosts: numbered(300, "me%d.github.io")}, []string{"me0.github.io"}, []string{"github.io"}, 300 - 248},
		{"hosts leave room", Names{Hosts: numbered(300, "h%d.example.com"), Services: services("echo.testing")}, []string{"example.com", "echo.testing"}, nil, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			claims, left := Claims(row.in)
			if len(claims) > claimBudget {
				t.Errorf("%d claims", len(claims))
			}
			if len(left) != row.left {
				t.Errorf("%d names are left, want %d: %v", len(left), row.left, left)
			}
			has := func(d string) bool { return slices.Contains(claims, Claim{Domain: d}) }
			for _, d := range row.want {
				if !has(d) {
					t.Errorf("%s is not claimed: %v", d, claims)
				}
			}
			for _, d := range row.miss {
				if has(d) {
					t.Errorf("%s is claimed", d)
				}
			}
		})
	}
}
