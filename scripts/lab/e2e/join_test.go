// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Who may not join is told why, and CMD is never begun.
func TestRefusalsNameTheCauseAndTheRemedy(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	token := func(account, audience string) string {
		text, err := api(t).Token(t.Context(), "external", account, audience, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return file(account+audience, text)
	}
	for name, c := range map[string]struct {
		flags []string // override those that work
		want  []string
	}{
		"token of another audience": {[]string{"--istio-token-file=" + token("test-http", "elsewhere")}, []string{"token refused", "--audience istio-ca"}},
		"no token at all":           {[]string{"--istio-token-file=" + file("garbage", "garbage")}, []string{"token refused"}},
		"token of another account":  {[]string{"--istio-token-file=" + token("test-tcp", "istio-ca")}, []string{"forbidden", "--service-account must be"}},
		"another cluster":           {[]string{"--cluster-id=other"}, []string{"token refused", "--cluster-id must be"}},
		"root of another mesh":      {[]string{"--istiod-ca=" + file("root", otherRoot(t))}, []string{"certificate not trusted", "istio-ca-root-cert"}},
		"another name of istiod":    {[]string{"--istiod-server-name=other.example"}, []string{"not other.example", "--istiod-server-name must be"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := finish(t, execAs(t, t.TempDir(), "test-http", c.flags, "echo", "begun"))
			if r.code != 125 || strings.Contains(r.out, "begun") {
				t.Errorf("got exit code %d, want 125, and output %q", r.code, r.out)
			}
			for _, s := range c.want {
				if !strings.Contains(r.errs, s) {
					t.Errorf("no %q in\n%s", s, r.errs)
				}
			}
		})
	}
}

// otherRoot makes a certificate that has nothing to do with the mesh.
func otherRoot(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
