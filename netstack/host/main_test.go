// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain makes this binary three programs: the tests, stage 2 of the private
// networks that they make, and helpers that run in them or in their place.
func TestMain(m *testing.M) {
	if Stage2(os.Args) {
		return
	}
	if len(os.Args) > 1 {
		if helper, ok := helpers[os.Args[1]]; ok {
			os.Exit(helper(os.Args[2:]))
		}
	}
	goleak.VerifyTestMain(m)
}
