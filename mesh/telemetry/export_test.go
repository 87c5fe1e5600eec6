// SPDX-License-Identifier: Apache-2.0

package telemetry

// Bounds, for the test that reaches them.
const (
	MaxSeries   = maxSeries
	MaxForeign  = maxForeign
	MaxBuffered = maxBuffered
)
