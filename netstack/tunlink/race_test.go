// SPDX-License-Identifier: Apache-2.0

//go:build race

package tunlink_test

// raceEnabled: the race detector makes pools forget at random.
const raceEnabled = true
