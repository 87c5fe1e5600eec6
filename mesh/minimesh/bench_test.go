// SPDX-License-Identifier: Apache-2.0

package minimesh_test

import (
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// BenchmarkStart is what each test pays for its mesh.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		m, err := minimesh.New(minimesh.Config{})
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Start(); err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
}
