// SPDX-License-Identifier: Apache-2.0

//go:build !race

package tunlink_test

const raceEnabled = false
