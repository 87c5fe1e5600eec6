// SPDX-License-Identifier: Apache-2.0

package balance

// Counts and Shares let tests read how load is divided.
type Counts struct{ Total, Healthy, Degraded int }

// A Share is what Spread gives to one priority.
type Share struct {
	Healthy, Degraded uint32
	Panic             bool
}

// Spread is spread.
func Spread(c []Counts, factor uint32, threshold float64) []Share {
	in := make([]counts, len(c))
	for i, n := range c {
		in[i] = counts{n.Total, n.Healthy, n.Degraded}
	}
	var out []Share
	for _, s := range spread(in, factor, threshold) {
		out = append(out, Share{s.healthyLoad, s.degradedLoad, s.panic})
	}
	return out
}
