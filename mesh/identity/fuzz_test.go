// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"crypto/ecdsa"
	"errors"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
)

// FuzzChain feeds what a CA might answer. Whatever is accepted must be ours,
// valid, and of the roots that came along.
func FuzzChain(f *testing.F) {
	a := newAuthority(f)
	key, csr := request(f)
	chain, roots, err := a.sign(csr, laptopID, time.Hour)
	must(f, err)
	f.Add(chain[0], roots[0])
	f.Add(append(chain[0], roots[0]...), roots[0])
	f.Add(roots[0], chain[0])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), roots[0])
	f.Add([]byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, chain, roots []byte) {
		c, err := identity.NewCertificate(key, [][]byte{chain}, [][]byte{roots}, time.Now())
		if err != nil {
			if c != nil || !errors.Is(err, identity.ErrBadCertificate) {
				t.Fatalf("refused with %v, %v", c, err)
			}
			return
		}
		if c.ID != laptopID || !c.Valid(time.Now()) || !key.PublicKey.Equal(c.TLS.Leaf.PublicKey) {
			t.Fatalf("accepted %+v", c)
		}
	})
}

// request is a key with its certificate request.
func request(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, csr, err := identity.NewRequest(nil)
	must(t, err)
	return key, csr
}
