// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

// A mesh may allow certificates a shorter life than we ask for, and what it
// gives is renewed in time: requests go on beyond the life of the first one,
// and both ends agree.
func TestCertificatesAreRenewedUnderTraffic(t *testing.T) {
	const life = "30s"
	undo, err := lab.RestartWith(t.Context(), cluster.IstiodMain, "MAX_WORKLOAD_CERT_TTL="+life, "DEFAULT_WORKLOAD_CERT_TTL="+life)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := undo(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s := open(t, "test-http")
	identity := func() (serial string, notAfter time.Time) {
		var st struct {
			Mesh struct {
				Identity struct {
					Serial   string
					NotAfter time.Time
				}
			}
		}
		s.askJSON(&st, "status")
		return st.Mesh.Identity.Serial, st.Mesh.Identity.NotAfter
	}
	first, ends := identity()
	if left := time.Until(ends); left > 31*time.Second {
		t.Fatalf("the certificate ends in %v, the mesh allows %s", left, life)
	}
	l := s.load()
	err = cluster.Poll(t.Context(), time.Minute, "the first certificate to have ended", func(context.Context) error {
		now, _ := identity()
		if now == first || time.Now().Before(ends.Add(2*time.Second)) {
			return fmt.Errorf("certificate %s, the first %s ends at %v", now, first, ends)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if ok, bad := l.end(); bad != 0 || ok == 0 {
		t.Errorf("%d requests failed, %d were answered", bad, ok)
	}
}
