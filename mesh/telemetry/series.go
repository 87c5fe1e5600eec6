// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"
	"sync/atomic"
)

// gauge is an integer gauge that can be read back.
type gauge struct{ value atomic.Int64 }

func (g *gauge) Inc() { g.value.Add(1) }
func (g *gauge) Dec() { g.value.Add(-1) }

// A seriesCache maps label keys to resolved metrics. It only grows, up to its
// bounds: a series that vanished would read as a counter reset.
type seriesCache[S any] struct {
	mu sync.RWMutex
	// +checklocks:mu
	series map[labelKey]*S
	// foreign holds the hosts outside the mesh that have labels of their own.
	// +checklocks:mu
	foreign map[string]struct{}
}

func (c *seriesCache[S]) init() {
	c.series = make(map[labelKey]*S)
	c.foreign = make(map[string]struct{})
}

// get returns the series of k, which it makes at first sight, or the
// anonymous one when a bound is reached.
func (c *seriesCache[S]) get(k labelKey, m *metrics, resolve func(*labelKey) *S) *S {
	c.mu.RLock()
	s := c.series[k]
	c.mu.RUnlock()
	if s != nil {
		return s
	}
	return c.add(k, m, resolve)
}

func (c *seriesCache[S]) add(k labelKey, m *metrics, resolve func(*labelKey) *S) *S {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.series[k]; s != nil {
		return s
	}
	if limit := c.limitLocked(&k); limit != "" {
		m.overflow.WithLabelValues(limit).Inc()
		k = k.anonymous()
		if s := c.series[k]; s != nil {
			return s
		}
	}
	s := resolve(&k)
	c.series[k] = s
	return s
}

// limitLocked names the bound that k exceeds, if any, and else books it.
// +checklocks:c.mu
func (c *seriesCache[S]) limitLocked(k *labelKey) string {
	if len(c.series) >= maxSeries {
		return "series"
	}
	if !k.foreign {
		return ""
	}
	if _, ok := c.foreign[k.service]; ok {
		return ""
	}
	if len(c.foreign) >= maxForeign {
		return "hosts"
	}
	c.foreign[k.service] = struct{}{}
	return ""
}
