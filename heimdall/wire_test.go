// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testPEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"

// sample is an enrolment with every field that nasp's form can hold.
func sample() Enrollment {
	return Enrollment{
		IstiodAddress:     "172.30.0.10:15012",
		IstiodServerName:  "istiod.istio-system.svc",
		Roots:             []byte(testPEM),
		Token:             NewSecret("istio-token"),
		ClusterID:         "Kubernetes",
		MeshID:            "mesh1",
		TrustDomain:       "cluster.local",
		Revision:          "cp-v115x",
		IstioVersion:      "1.15.6",
		Namespace:         "external",
		ServiceAccount:    "test-http",
		WorkloadName:      "test-http",
		Owner:             "kubernetes://apis/v1/namespaces/external/workloadgroups/test-http",
		Labels:            map[string]string{"app": "test-http"},
		Network:           "network2",
		InstanceIPs:       []netip.Addr{netip.MustParseAddr("192.0.2.2")},
		AutoRegisterGroup: "test-http",
		DNSDomain:         "cluster.local",
		SearchDomains:     []string{"svc.cluster.local", "cluster.local"},
	}
}

// whole is a sample with what only our form can hold.
func whole() Enrollment {
	e := sample()
	e.TokenExpiry = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e.OtherAddresses = []string{"gateway.example:15012"}
	e.AccessToken = NewSecret("access-token")
	e.AccessTokenExpiry = e.TokenExpiry.Add(24 * time.Hour)
	return e
}

var secrets = cmp.AllowUnexported(Secret{})

func addrs(a, b netip.Addr) bool { return a == b }

// golden returns a file of testdata, indented as it lies there.
func golden(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWireForms(t *testing.T) {
	tests := []struct {
		file, media string
		marshal     func(*Enrollment) ([]byte, error)
		in          Enrollment
	}{
		{"nasp.json", mediaJSON, marshalNASP, sample()},
		{"own.json", MediaType + "; charset=utf-8", marshalOwn, whole()},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			b, err := tt.marshal(&tt.in)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, b, "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			if d := cmp.Diff(string(golden(t, tt.file)), got.String()); d != "" {
				t.Errorf("wire form (-want +got):\n%s", d)
			}
			back, err := decode(tt.media, b)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.in, back, secrets, cmp.Comparer(addrs)); d != "" {
				t.Errorf("read back (-want +got):\n%s", d)
			}
		})
	}
}

// The first generation of nasp's Heimdall knows no mesh ID, no trust domain
// and no groups.
func TestDecodeFirstGeneration(t *testing.T) {
	e, err := decode(mediaJSON, golden(t, "nasp-2023.json"))
	if err != nil {
		t.Fatal(err)
	}
	if e.IstiodServerName != "istiod-icp-v115x.istio-system.svc" || e.Namespace != "external" || e.AutoRegisterGroup != "" ||
		e.Token.Reveal() != "istio-token" || e.InstanceIPs[0] != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("read %+v", e)
	}
}

func TestDecodeRefuses(t *testing.T) {
	change := func(f func(*Enrollment)) string {
		e := whole()
		f(&e)
		b, err := marshalOwn(&e)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	tests := []struct{ name, media, body, want string }{
		{"no type", "", "{}", "content type"},
		{"html", "text/html", "<html>", "neither of the forms"},
		{"not JSON", mediaJSON, "<html>", "invalid character"},
		{"empty", mediaJSON, "{}", "address of istiod"},
		{"no port", MediaType, change(func(e *Enrollment) { e.IstiodAddress = "istiod" }), "missing port"},
		{"no namespace", MediaType, change(func(e *Enrollment) { e.Namespace = "" }), "no namespace"},
		{"no token", MediaType, change(func(e *Enrollment) { e.Token = Secret{} }), "no token"},
		{"no roots", MediaType, change(func(e *Enrollment) { e.Roots = []byte("garbage") }), "no root"},
		{"a key for roots", MediaType, change(func(e *Enrollment) {
			e.Roots = []byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n")
		}), "no root"},
		{"bad address", mediaJSON, `{"Environment":{"InstanceIPs":["nowhere"]}}`, "instance address"},
		{"token not base64", mediaJSON, `{"CAClientConfig":{"Token":"*"}}`, "base64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decode(tt.media, []byte(tt.body))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, file := range []string{"nasp.json", "own.json", "nasp-2023.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(mediaJSON, b)
		f.Add(MediaType, b)
	}
	f.Fuzz(func(t *testing.T, media string, b []byte) {
		e, err := decode(media, b)
		if err != nil {
			return
		}
		// What is taken can be used and written.
		if err := e.Validate(); err != nil {
			t.Errorf("taken, but %v", err)
		}
		for _, marshal := range []func(*Enrollment) ([]byte, error){marshalNASP, marshalOwn} {
			if _, err := marshal(&e); err != nil && !strings.Contains(err.Error(), "year outside of range") {
				t.Errorf("taken, but cannot be written: %v", err)
			}
		}
	})
}

// token makes a JWT that lives from one time to another.
func token(issued, expiry time.Time, note string) Secret {
	body, err := json.Marshal(map[string]any{"iat": issued.Unix(), "exp": expiry.Unix(), "sub": note})
	if err != nil {
		panic(err)
	}
	return NewSecret("e30." + base64.RawURLEncoding.EncodeToString(body) + ".c2ln")
}
