// SPDX-License-Identifier: Apache-2.0

package balance

// counts are the hosts of one priority.
type counts struct{ total, healthy, degraded int }

// A share is the part of the load that one priority takes, in percent.
type share struct {
	healthyLoad, degradedLoad uint32
	// panic: too few hosts are healthy, health is not looked at.
	panic bool
}

// spread divides 100 % of the load among priorities, as Envoy's
// LoadBalancerBase does. factor is the overprovisioning in percent, threshold
// the panic threshold in percent; 0 never panics.
func spread(c []counts, factor uint32, threshold float64) []share {
	shares := make([]share, len(c))
	health := make([]uint32, len(c))
	degraded := make([]uint32, len(c))
	var sum uint32
	for i, n := range c {
		if n.total > 0 {
			health[i] = uint32(min(100, uint64(factor)*uint64(n.healthy)/uint64(n.total)))
			degraded[i] = uint32(min(100, uint64(factor)*uint64(n.degraded)/uint64(n.total)))
		}
		sum = min(100, sum+health[i]+degraded[i])
	}
	if sum > 0 {
		rest := uint32(100)
		for i, h := range health {
			shares[i].healthyLoad = min(rest, h*100/sum)
			rest -= shares[i].healthyLoad
		}
		for i, d := range degraded {
			shares[i].degradedLoad = min(rest, d*100/sum)
			rest -= shares[i].degradedLoad
		}
		roundUp(shares, health, degraded, rest)
	} else {
		scarce(shares, c)
	}
	// With everything available, or panic switched off, health is respected.
	if sum == 100 || threshold <= 0 || !panicking(shares, c, threshold) {
		return shares
	}
	return byNumber(shares, c)
}

// roundUp gives what integer division left over to the first priority that
// can take any.
func roundUp(shares []share, health, degraded []uint32, rest uint32) {
	for i := range health {
		if health[i] > 0 {
			shares[i].healthyLoad += rest
			return
		}
	}
	for i := range degraded {
		if degraded[i] > 0 {
			shares[i].degradedLoad += rest
			return
		}
	}
}

// scarce gives all of the load to the first priority with a usable host, where
// these are so few of so many that their share rounds to nothing.
func scarce(shares []share, c []counts) {
	for i := range c {
		if c[i].healthy > 0 {
			shares[i].healthyLoad = 100
			return
		}
	}
	for i := range c {
		if c[i].degraded > 0 {
			shares[i].degradedLoad = 100
			return
		}
	}
}

// panicking marks the priorities under the threshold and reports whether all
// of them are.
func panicking(shares []share, c []counts, threshold float64) bool {
	all := true
	for i, n := range c {
		percent := 0.0
		if n.total > 0 {
			percent = 100 * float64(n.healthy+n.degraded) / float64(n.total)
		}
		shares[i].panic = percent < threshold
		all = all && shares[i].panic
	}
	return all
}

// byNumber divides the load by numbers of hosts, when all priorities panic.
func byNumber(shares []share, c []counts) []share {
	total := 0
	for _, n := range c {
		total += n.total
	}
	if total == 0 {
		return shares
	}
	first, rest := -1, uint32(100)
	for i, n := range c {
		if first < 0 && n.total > 0 {
			first = i
		}
		load := uint32(100 * n.total / total)
		shares[i] = share{healthyLoad: load, panic: true}
		rest -= load
	}
	shares[first].healthyLoad += rest
	return shares
}
