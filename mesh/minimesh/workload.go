// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// workloadCertTTL is the life of a workload's certificate; workloads are not
// what the rotation of certificates is tried on.
const workloadCertTTL = defaultCertTTL

// A deployment is a service with its running workloads. It is immutable;
// Mesh.deploy replaces it.
type deployment struct {
	Service
	workloads map[string]*workload // by name; not the external ones
}

// newDeployment starts the workloads of a service. Those that the old one has
// in the same form are taken over, the rest of the old ones end.
func (m *Mesh) newDeployment(s Service, old *deployment) (*deployment, error) {
	d := &deployment{Service: s, workloads: map[string]*workload{}}
	var fresh []*workload
	for _, e := range s.Endpoints {
		if e.External != nil || s.TLS == HBONE {
			continue
		}
		want := m.newWorkload(&d.Service, e)
		if old != nil {
			if w := old.workloads[e.Name]; w != nil && w.same(want) {
				if err := w.setFault(e.Fault); err != nil {
					return nil, err
				}
				d.workloads[e.Name] = w
				continue
			} else if w != nil && w.address.IsValid() {
				w.close() // the new one may want the same sockets
			}
		}
		if err := want.open(); err != nil {
			for _, w := range fresh {
				w.close()
			}
			return nil, fmt.Errorf("start %s of %s: %w", e.Name, s.host(), err)
		}
		fresh = append(fresh, want)
		d.workloads[e.Name] = want
	}
	if old != nil {
		for name, w := range old.workloads {
			if d.workloads[name] != w {
				w.close()
			}
		}
	}
	return d, nil
}

func (d *deployment) close() {
	for _, w := range d.workloads {
		w.close()
	}
}

// placed tells where the endpoints of the deployment are.
func (d *deployment) placed() placed {
	p := placed{Service: d.Service}
	for _, e := range d.Endpoints {
		where := e.External
		if w := d.workloads[e.Name]; w != nil {
			where = map[uint16]netip.AddrPort{}
			for _, port := range w.ports {
				where[port.port.Number] = port.addr
			}
		} else if where == nil && e.Address.IsValid() { // HBONE: a place, and nobody there
			where = map[uint16]netip.AddrPort{}
			for _, port := range d.Ports {
				where[port.Number] = netip.AddrPortFrom(e.Address, port.target())
			}
		}
		p.where = append(p.where, where)
	}
	return p
}

// A workload is an endpoint that this process runs: a pod and its sidecar.
type workload struct {
	// Set by newWorkload, then read-only.
	mesh     *Mesh
	name     string
	host     string // of its service
	identity string
	tls      TLSMode
	address  netip.Addr // not valid: any free port of the mesh's own
	wanted   []Port

	// Set by open, then read-only.
	cert  *tls.Certificate
	ports []*portServer

	mu     sync.Mutex
	fault  Fault
	closed bool
}

func (m *Mesh) newWorkload(s *Service, e Endpoint) *workload {
	w := &workload{
		mesh: m, name: e.Name, host: s.host(), identity: e.Identity,
		tls: s.TLS, address: e.Address, wanted: s.Ports, fault: e.Fault,
	}
	if w.identity == "" {
		w.identity = m.authority.spiffe(s.Namespace, s.account())
	}
	return w
}

// same reports whether a running workload is what another would become.
func (w *workload) same(o *workload) bool {
	return w.identity == o.identity && w.tls == o.tls && w.address == o.address && slices.Equal(w.wanted, o.wanted)
}

// open binds the ports and serves.
func (w *workload) open() error {
	cert, err := w.mesh.authority.issue(names{uris: []string{w.identity}}, workloadCertTTL)
	if err != nil {
		return err
	}
	w.cert = cert
	for _, p := range w.wanted {
		addr := netip.AddrPortFrom(w.mesh.cfg.Listen.Addr(), 0)
		if w.address.IsValid() {
			addr = netip.AddrPortFrom(w.address, p.target())
		}
		ps := w.newPortServer(p)
		if err := ps.listen(addr); err != nil {
			w.close()
			return err
		}
		w.ports = append(w.ports, ps)
	}
	return w.setFault(w.fault)
}

func (w *workload) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	for _, p := range w.ports {
		p.close()
	}
}

// setFault changes how new connections are met.
func (w *workload) setFault(f Fault) error {
	switch f {
	case NoFault, Refuse, Reset, Silent, Alert, Hangup, Mute:
	default:
		return fmt.Errorf("unknown fault %q", f)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
	for _, p := range w.ports {
		if f == Refuse || w.closed {
			p.deafen()
		} else if err := p.listen(p.addr); err != nil {
			return err
		}
	}
	return nil
}

func (w *workload) currentFault() Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}

// An Accept is a connection that a workload has taken, with what the client
// showed of itself.
type Accept struct {
	Service, Endpoint string
	Port              uint16 // of the service
	Peer              string // SPIFFE ID; "": clear text
	SNI               string
	ALPN              []string // as offered
	Version           uint16   // of TLS; 0: clear text
	Resumed           bool
}

// maxAccepts bounds what is remembered of a long run.
const maxAccepts = 10000

// accepted notes a connection.
func (m *Mesh) accepted(a Accept) {
	m.acceptMu.Lock()
	defer m.acceptMu.Unlock()
	if len(m.accepts) == maxAccepts {
		m.accepts = slices.Delete(m.accepts, 0, maxAccepts/2)
	}
	m.accepts = append(m.accepts, a)
}

// Accepts returns the connections that the workloads have taken, oldest first.
func (m *Mesh) Accepts() []Accept {
	m.acceptMu.Lock()
	defer m.acceptMu.Unlock()
	return slices.Clone(m.accepts)
}
