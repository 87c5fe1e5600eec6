// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"strings"
	"sync"
)

// A bell rings for everybody who waits for the next Snapshot.
type bell struct {
	mu   sync.Mutex
	next chan struct{} // closed by ring; nil: nobody waits
}

func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// Published returns a channel that is closed when names, listeners, routes or
// clusters change next. Who follows them takes the channel first and looks
// after, so that no change falls between.
func (m *Mesh) Published() <-chan struct{} { return m.bell.wait() }

// Addresses lists the addresses that names of the mesh resolve to.
func (m *Mesh) Addresses() []netip.Addr {
	s := m.catalog.Snapshot()
	if s == nil {
		return nil
	}
	var all []netip.Addr
	for _, svc := range s.Services() {
		all = append(all, svc.Addresses...)
	}
	return all
}

// Knows reports whether the mesh answers for a name.
func (m *Mesh) Knows(name string) bool {
	s := m.catalog.Snapshot()
	if s == nil {
		return false
	}
	_, ok := s.Lookup(strings.ToLower(strings.TrimSuffix(name, ".")))
	return ok
}

// LastError is why the node is not in the mesh, or not up to date: of the
// certificate if that failed, else of the stream to istiod. It is nil while
// all is well.
func (m *Mesh) LastError() error {
	if _, err := m.ids.LastError(); err != nil {
		return err
	}
	if st := m.xds.Status(); !st.Connected {
		return st.LastError
	}
	return nil
}
