// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"maps"
	"slices"
	"time"
)

// A Status is how the stream is doing, for people.
type Status struct {
	// Connected: there is a stream and the server has answered on it.
	Connected bool
	// Since is when Connected last changed.
	Since time.Time
	// LastUpdate has, by type URL, when the last response was applied.
	LastUpdate map[string]time.Time
	// Pending are the types asked for that were never answered, without the
	// optional ones.
	Pending []string
	// Rejected are the resources whose newest version could not be used.
	Rejected []Rejection
	// LastError is why the last stream ended, at LastErrorAt; nil: none has.
	LastError   error
	LastErrorAt time.Time
	// Reconnects counts the streams that worked after the first, NACKs the
	// responses with a bad resource, Unknown those of a type not asked for.
	Reconnects, NACKs, Unknown int
}

// A Rejection is a resource whose newest version could not be used.
type Rejection struct {
	TypeURL string `json:"type_url"`
	Name    string `json:"name"`
	Reason  string `json:"reason"`
}

// Status returns how the stream is doing.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Status{
		Connected:   c.delivered,
		Since:       c.since,
		LastUpdate:  make(map[string]time.Time, len(c.types)),
		LastError:   c.lastErr,
		LastErrorAt: c.lastErrAt,
		Reconnects:  max(0, c.streams-1),
		NACKs:       c.nacks,
		Unknown:     c.unknown,
	}
	for _, s := range c.types {
		switch {
		case !s.lastUpdate.IsZero():
			st.LastUpdate[s.URL] = s.lastUpdate
		case !s.Optional && (s.Wildcard || len(s.wanted) > 0):
			st.Pending = append(st.Pending, s.URL)
		}
		for _, n := range slices.Sorted(maps.Keys(s.rejected)) {
			st.Rejected = append(st.Rejected, Rejection{TypeURL: s.URL, Name: n, Reason: s.rejected[n]})
		}
	}
	return st
}
