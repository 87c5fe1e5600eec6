// SPDX-License-Identifier: Apache-2.0

package host

import "testing"

func TestDetectDNS(t *testing.T) {
	for _, row := range []struct {
		name     string
		conf     string
		resolved bool
		nss      bool
		want     DNSMode
		warns    bool
	}{
		{"Debian, Fedora server without resolved", "nameserver 192.0.2.53", false, false, DNSResolvConf, false},
		{"Ubuntu, Fedora: stub", "nameserver 127.0.0.53\noptions edns0 trust-ad", true, true, DNSResolved, false},
		{"stub, without nss-resolve", "nameserver 127.0.0.53", true, false, DNSResolved, false},
		{"stub, resolved has crashed", "nameserver 127.0.0.53", false, false, DNSResolved, false},
		{"uplink file, nss-resolve", "nameserver 192.0.2.53", true, true, DNSResolved, true},
		{"uplink file alone", "nameserver 192.0.2.53", true, false, DNSResolvConf, false},
		{"a local dnsmasq", "nameserver 127.0.0.1", false, false, DNSResolvConf, false},
		{"WSL", "nameserver 172.20.0.1", false, false, DNSResolvConf, false},
		{"an empty file", "", false, false, DNSResolvConf, false},
	} {
		w := dnsWorld{servers: ParseResolvConf([]byte(row.conf)).Servers, resolved: row.resolved, nssResolved: row.nss}
		if got, warning := w.detect(); got != row.want || (warning != "") != row.warns {
			t.Errorf("%s: %s, %q", row.name, got, warning)
		}
	}
}

func TestParseDNSMode(t *testing.T) {
	for word, want := range map[string]DNSMode{"": DNSAuto, "resolved": DNSResolved, "none": DNSNone} {
		if got, err := ParseDNSMode(word); got != want || err != nil {
			t.Errorf("%q: %q, %v", word, got, err)
		}
	}
	if _, err := ParseDNSMode("hosts"); err == nil {
		t.Error("hosts was accepted")
	}
}
