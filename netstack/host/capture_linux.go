// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A CaptureConfig says what of a host's traffic a TUN takes.
type CaptureConfig struct {
	State *State // the session's; stays the caller's

	Device     string         // name of the TUN; empty: nasp0
	MTU        int            // 0: DefaultMTU
	Ranges     []netip.Prefix // captured as a whole, beside the mesh's own addresses
	Except     []netip.Addr   // left to the host though within Ranges: istiod, gateways, resolvers
	Lockdown   bool           // Ranges stay refused after a crash, as the mesh's own addresses do
	Forwarded  bool           // capture what others send through this host too
	Virtual    []netip.Prefix // pins the virtual range, one of each family at most
	VirtualAll bool           // no address is captured as it is

	Logger *slog.Logger // nil: none
}

func (cfg *CaptureConfig) check() error {
	if cfg.State == nil {
		return errors.New("capture: no state")
	}
	if cfg.Device == "" {
		cfg.Device = deviceName
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for i, p := range cfg.Ranges {
		if err := CheckCapture(p); err != nil {
			return err
		}
		cfg.Ranges[i] = p.Masked()
	}
	seen := map[bool]bool{}
	for _, p := range cfg.Virtual {
		if err := CheckVirtual(p); err != nil {
			return err
		}
		if seen[p.Addr().Is4()] {
			return fmt.Errorf("virtual range %v: there is one of that family already", p)
		}
		seen[p.Addr().Is4()] = true
	}
	return nil
}

// A Capture leads part of this host's traffic into a TUN, and is the memory of how to
// undo that. Its methods are safe for concurrent use.
type Capture struct {
	cfg    CaptureConfig
	state  *State
	rt     *rtnl
	events *eventSocket
	device Device
	index  int

	mu        sync.Mutex
	table     routeTable
	virtual   map[int]*virtualRange // by family
	mesh      map[netip.Addr]struct{}
	moved     map[netip.Addr]Collision // real addresses that the virtual range stands in for
	refused   []RefusedRange
	tested    bool // refused holds, until the host changes
	inherited bool // stands on what a run before has left
	repairs   Repairs
	taken     bool // the device's descriptor is the caller's
	closed    bool

	names atomic.Pointer[translation]
}

// A RuleTakenError says that a rule of somebody else has a number that ours need.
type RuleTakenError struct {
	Priority int
	Table    uint32
}

func (e *RuleTakenError) Error() string {
	return fmt.Sprintf("routing rule %d is taken (it leads to table %d)", e.Priority, e.Table)
}

// OpenCapture makes the device and the rules. Nothing is captured yet: that is for
// [Capture.Apply]. What a crash of the session has left is kept until then, but for
// the files, which are put back at once.
//
// The network namespace is that of the calling thread.
func OpenCapture(cfg CaptureConfig) (_ *Capture, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	c := &Capture{
		cfg: cfg, state: cfg.State, device: Device{FD: -1},
		virtual: map[int]*virtualRange{}, mesh: map[netip.Addr]struct{}{}, moved: map[netip.Addr]Collision{},
	}
	if c.rt, err = newRTNL(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.abort())
		}
	}()
	c.rt.strict()
	if c.events, err = newEventSocket(c.rt.portID()); err != nil {
		return nil, err
	}
	did, err := c.state.restoreFiles(false)
	for _, d := range did {
		c.cfg.Logger.Info("undid what the last run left", "did", d)
	}
	if err != nil {
		return nil, err
	}
	c.inherited = c.state.journal().Routing
	if err := c.checkFree(); err != nil {
		return nil, err
	}
	if err := c.makeDevice(); err != nil {
		return nil, err
	}
	return c, c.makeRules()
}

// abort ends a start that failed. Where a run before had left its rules and routes,
// they stay, so that a service manager's next attempt finds them; else all is undone.
func (c *Capture) abort() error {
	if c.inherited || c.table.rt == nil {
		return c.Leave()
	}
	return c.Close()
}

// checkFree refuses a host on which our numbers are somebody else's.
func (c *Capture) checkFree() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := c.rt.rules(family)
		if err != nil {
			return err
		}
		for _, k := range list {
			if k.priority >= ruleBypass && k.priority <= ruleTarget && !k.ours() {
				return &RuleTakenError{Priority: int(k.priority), Table: k.table}
			}
		}
		routes, err := c.rt.routes(family, CaptureTable)
		if err != nil {
			return err
		}
		for _, r := range routes {
			switch {
			case r.protocol != protoNasp:
				return fmt.Errorf("routing table %d is taken: it has a route to %v of protocol %d", CaptureTable, r.dst, r.protocol)
			case r.kind == unix.RTN_UNICAST:
				return &BusyError{Device: c.rt.deviceName(r.index)}
			}
		}
	}
	return nil
}

func (c *Capture) makeDevice() (err error) {
	if c.device, err = createDevice(c.cfg.Device, c.cfg.MTU); err != nil {
		return err
	}
	c.state.at("device")
	if c.index, err = deviceIndex(c.cfg.Device); err != nil {
		return err
	}
	families := []int{unix.AF_INET}
	if hasIPv6(c.cfg.Device) {
		families = append(families, unix.AF_INET6)
	}
	if err := c.loadVirtual(families); err != nil {
		return err
	}
	c.table = routeTable{index: c.index, from4: c.virtual[unix.AF_INET].device(), forwarded: c.cfg.Forwarded}
	if v := c.virtual[unix.AF_INET6]; v != nil {
		c.table.from6 = v.device()
	}
	return c.rt.setDevice(c.cfg.Device, c.index, c.cfg.MTU, c.table.from4, c.table.from6)
}

func (c *Capture) makeRules() error {
	if err := c.state.note("routing", func(j *journal) { j.Routing = true }); err != nil {
		return err
	}
	c.table.rt = c.rt // from here on there is something to undo
	if err := c.table.addRules(c.state.at); err != nil {
		return err
	}
	have, _, err := c.table.stands()
	c.table.have = have
	return errors.Join(err, c.checkQuestions())
}

// checkQuestions asks whose the TUN's own addresses are. A kernel that does not
// understand how we ask would otherwise have every address look free.
func (c *Capture) checkQuestions() error {
	own := []netip.Addr{c.table.from4}
	if c.table.from6.IsValid() {
		own = append(own, c.table.from6)
	}
	found, err := c.rt.collisions(own)
	if err == nil && len(found) != len(own) {
		err = errors.New("the kernel does not answer as expected")
	}
	if err != nil {
		return fmt.Errorf("test for collisions: %w", err)
	}
	return nil
}

// Device returns the TUN. Its descriptor is the caller's from then on: closing it
// takes the device away, and with it all routes that lead there.
func (c *Capture) Device() Device {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = true
	return c.device
}

// Index returns the number of the device, by which the resolver knows its link.
func (c *Capture) Index() int { return c.index }

// Close undoes all that was done to the host: the rules first, so that from then on
// everything goes as the host says. It is idempotent.
func (c *Capture) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	_, err := deleteRules(c.rt, false, c.state.at)
	if err == nil {
		var routes []kernelRoute
		if routes, err = ownRoutes(c.rt); err == nil {
			// Another's device in our table cannot be: checkFree has seen to that.
			_, err = flushRoutes(c.rt, c.index, routes, nil, false, c.state.at)
		}
	}
	if err == nil {
		err = c.state.note("routing undone", func(j *journal) { j.Routing = false })
	}
	return errors.Join(err, c.leaveLocked())
}

// Leave lets go of the host as a crash would: the device goes, and the rules and
// unreachable routes stay for the next run, with the journal that names them.
func (c *Capture) Leave() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaveLocked()
}

func (c *Capture) leaveLocked() error {
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	if c.device.FD >= 0 && !c.taken {
		errs = append(errs, unix.Close(c.device.FD))
	}
	if c.events != nil {
		errs = append(errs, c.events.Close())
	}
	return errors.Join(append(errs, c.rt.close())...)
}

// A MovedAddress is one that is somebody else's on this host.
type MovedAddress struct {
	Real, Virtual netip.Addr
	By            Collision // zero if all addresses are moved
}

// A RefusedRange is one that was asked for and is somebody else's on this host.
type RefusedRange struct {
	Range netip.Prefix
	By    Collision
}

// A CaptureStatus says what stands.
type CaptureStatus struct {
	Device    string
	IPv6      bool
	Inherited bool           // a run before this one had crashed
	Virtual   []netip.Prefix // ranges, IPv4 first
	Mesh      int            // addresses of the mesh that are captured
	Routes    int            // that really stand, of all kinds
	Moved     []MovedAddress // sorted
	Refused   []RefusedRange
	Repairs   Repairs
	Warnings  []string // what of the host stands in the way
}

// Status returns what stands now.
func (c *Capture) Status() CaptureStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := CaptureStatus{
		Device: c.cfg.Device, IPv6: c.table.from6.IsValid(), Inherited: c.inherited,
		Mesh: len(c.mesh), Routes: len(c.table.have), Refused: slices.Clone(c.refused), Repairs: c.repairs,
	}
	for _, family := range c.table.families() {
		s.Virtual = append(s.Virtual, c.virtual[family].prefix)
	}
	names := c.names.Load()
	for real, by := range c.moved {
		if _, live := c.mesh[real]; live {
			s.Moved = append(s.Moved, MovedAddress{Real: real, Virtual: names.virtual(real), By: by})
		}
	}
	s.Warnings = c.warnings()
	slices.SortFunc(s.Moved, func(a, b MovedAddress) int { return a.Real.Compare(b.Real) })
	return s
}
