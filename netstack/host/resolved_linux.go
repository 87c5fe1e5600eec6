// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// The D-Bus names of systemd-resolved: org.freedesktop.resolve1(5).
const (
	resolvedName    = "org.freedesktop.resolve1"
	resolvedPath    = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedManager = resolvedName + ".Manager"
	resolvedLink    = resolvedName + ".Link"
	dbusName        = "org.freedesktop.DBus"
)

const (
	// resolvedTimeout bounds one call, which takes a millisecond. It is long enough
	// for the service to be started by it.
	resolvedTimeout = 10 * time.Second

	// resolvedRetries is how often a resolver that has just started is told our
	// domains: it may not have seen our link yet.
	resolvedRetries = 5
)

// A resolvedDNS has systemd-resolved send us the look-ups of our domains, and no
// others. All that it is told belongs to the link and vanishes with the TUN, so that
// nothing of it needs the journal.
type resolvedDNS struct {
	conn    *dbus.Conn
	object  dbus.BusObject
	signals chan *dbus.Signal
	index   int32
	server  netip.AddrPort
	log     *slog.Logger

	mu       sync.Mutex
	claims   []Claim // the last that were accepted
	upstream []netip.AddrPort
}

func openResolved(ctx context.Context, index int, server netip.AddrPort, log *slog.Logger) (_ *resolvedDNS, err error) {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	r := &resolvedDNS{
		conn: conn, object: conn.Object(resolvedName, resolvedPath), signals: make(chan *dbus.Signal, 16),
		index: int32(index), server: server, log: log,
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	conn.Signal(r.signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchInterface(dbusName), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, resolvedName)},
		{dbus.WithMatchSender(resolvedName), dbus.WithMatchObjectPath(resolvedPath), dbus.WithMatchMember("PropertiesChanged")},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return nil, fmt.Errorf("watch systemd-resolved: %w", err)
		}
	}
	if err := r.set(ctx, nil); err != nil {
		return nil, err
	}
	return r, nil
}

// resolvedRuns reports whether there is a systemd-resolved now.
func resolvedRuns() bool {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return false
	}
	defer conn.Close()
	var owned bool
	err = conn.BusObject().Call(dbusName+".NameHasOwner", 0, resolvedName).Store(&owned)
	return err == nil && owned
}

func (r *resolvedDNS) call(ctx context.Context, method string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, resolvedTimeout)
	defer cancel()
	if err := r.object.CallWithContext(ctx, resolvedManager+"."+method, 0, args...).Err; err != nil {
		return fmt.Errorf("systemd-resolved: %s: %w", method, err)
	}
	return nil
}

// A linkServer is (iayqs), of SetLinkDNSEx.
type linkServer struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

// A linkDomain is (sb), of SetLinkDomains.
type linkDomain struct {
	Domain  string
	Routing bool
}

// set tells the resolver all that it should know of our link. The server comes last:
// a link with one, and without domains, would be asked for everything.
func (r *resolvedDNS) set(ctx context.Context, claims []Claim) error {
	if err := r.call(ctx, "SetLinkDefaultRoute", r.index, false); err != nil {
		return err
	}
	for _, off := range []string{"SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSSEC", "SetLinkDNSOverTLS"} {
		// A resolver built without one of them does not do it either.
		if err := r.call(ctx, off, r.index, "no"); err != nil {
			r.log.Debug("resolver feature not turned off", "err", err)
		}
	}
	if err := r.setDomains(ctx, claims); err != nil {
		return err
	}
	a := r.server.Addr().Unmap()
	server := linkServer{Family: int32(family(a)), Address: a.AsSlice(), Port: r.server.Port()}
	if err := r.call(ctx, "SetLinkDNSEx", r.index, []linkServer{server}); err != nil {
		return err
	}
	return r.readUpstream(ctx)
}

// setDomains changes the domains in one call. One too many would empty the list, so
// they are counted first; and should the call fail all the same, the last good list is
// sent again.
func (r *resolvedDNS) setDomains(ctx context.Context, claims []Claim) error {
	if len(claims) > maxDomains {
		return fmt.Errorf("systemd-resolved: %d domains, it takes %d", len(claims), maxDomains)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.sendDomains(ctx, claims); err != nil {
		return errors.Join(err, r.sendDomains(ctx, r.claims))
	}
	r.claims = slices.Clone(claims)
	return nil
}

func (r *resolvedDNS) sendDomains(ctx context.Context, claims []Claim) error {
	list := make([]linkDomain, 0, len(claims))
	for _, c := range claims {
		list = append(list, linkDomain{Domain: c.Domain, Routing: !c.Search})
	}
	return r.call(ctx, "SetLinkDomains", r.index, list)
}

// A managerServer is (iiayqs), of the Manager's DNSEx.
type managerServer struct {
	Link    int32
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

// readUpstream asks which servers the host has for names that nobody claims. Never the
// stub among them: it would ask us again.
func (r *resolvedDNS) readUpstream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolvedTimeout)
	defer cancel()
	var all []managerServer
	if err := r.property(ctx, r.object, resolvedManager, "DNSEx", &all); err != nil {
		return err
	}
	var chosen, rest []netip.AddrPort
	routes := map[int32]bool{0: true}
	for _, s := range all {
		a, ok := netip.AddrFromSlice(s.Address)
		if !ok || s.Link == r.index || slices.Contains(resolvedStubs, a) {
			continue
		}
		if a.IsLinkLocalUnicast() && a.Is6() {
			a = a.WithZone(strconv.Itoa(int(s.Link)))
		}
		if s.Port == 0 {
			s.Port = 53
		}
		if _, known := routes[s.Link]; !known {
			routes[s.Link] = r.defaultRoute(ctx, s.Link)
		}
		if at := netip.AddrPortFrom(a, s.Port); routes[s.Link] {
			chosen = append(chosen, at)
		} else {
			rest = append(rest, at)
		}
	}
	if len(chosen) == 0 {
		chosen = rest
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.upstream = chosen
	return nil
}

func (r *resolvedDNS) property(ctx context.Context, of dbus.BusObject, iface, name string, into any) error {
	var v dbus.Variant
	err := of.CallWithContext(ctx, dbusName+".Properties.Get", 0, iface, name).Store(&v)
	if err == nil {
		err = v.Store(into)
	}
	if err != nil {
		return fmt.Errorf("systemd-resolved: get %s: %w", name, err)
	}
	return nil
}

func (r *resolvedDNS) defaultRoute(ctx context.Context, index int32) bool {
	var path dbus.ObjectPath
	if r.object.CallWithContext(ctx, resolvedManager+".GetLink", 0, index).Store(&path) != nil {
		return false
	}
	var yes bool
	return r.property(ctx, r.conn.Object(resolvedName, path), resolvedLink, "DefaultRoute", &yes) == nil && yes
}

// A managerDomain is (isb), of the Manager's Domains.
type managerDomain struct {
	Link    int32
	Domain  string
	Routing bool
}

// taken returns the domains that other links have.
func (r *resolvedDNS) taken(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, resolvedTimeout)
	defer cancel()
	var all []managerDomain
	if err := r.property(ctx, r.object, resolvedManager, "Domains", &all); err != nil {
		return nil, err
	}
	var list []string
	for _, d := range all {
		if d.Link != r.index {
			list = append(list, d.Domain)
		}
	}
	return list, nil
}

// reassert tells the resolver all of it again.
func (r *resolvedDNS) reassert(ctx context.Context) error {
	r.mu.Lock()
	claims := r.claims
	r.mu.Unlock()
	return r.set(ctx, claims)
}

// run follows the resolver: one that has started anew is told again what it should
// know, and a change of its servers is heeded.
func (r *resolvedDNS) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-r.signals:
			if !ok {
				return errors.New("watch systemd-resolved: the system bus has gone")
			}
			r.heed(ctx, s)
		}
	}
}

func (r *resolvedDNS) heed(ctx context.Context, s *dbus.Signal) {
	if s.Name != dbusName+".NameOwnerChanged" {
		if err := r.readUpstream(ctx); err != nil {
			r.log.Debug("resolver's servers not read", "err", err)
		}
		return
	}
	var name, before, now string
	if dbus.Store(s.Body, &name, &before, &now) != nil || name != resolvedName {
		return
	}
	if now == "" {
		r.log.Warn("systemd-resolved has gone: no names until it is back")
		return
	}
	wait := time.NewTimer(0)
	defer wait.Stop()
	var err error
	for range resolvedRetries {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		if err = r.reassert(ctx); err == nil {
			r.log.Info("systemd-resolved is back, and knows our domains")
			return
		}
		wait.Reset(watchSettle)
	}
	r.log.Warn("systemd-resolved is back, but does not take our domains", "err", err)
}

// prove looks a name up as nss-resolve does.
func (r *resolvedDNS) prove(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolvedTimeout)
	defer cancel()
	var found []struct {
		Link, Family int32
		Address      []byte
	}
	var canonical string
	var flags uint64
	call := r.object.CallWithContext(ctx, resolvedManager+".ResolveHostname", 0, int32(0), name, int32(unix.AF_UNSPEC), uint64(0))
	if err := call.Store(&found, &canonical, &flags); err != nil {
		return nil, err
	}
	var list []netip.Addr
	for _, f := range found {
		if a, ok := netip.AddrFromSlice(f.Address); ok {
			list = append(list, a)
		}
	}
	return list, nil
}

func (r *resolvedDNS) servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.upstream)
}

// close takes back what the resolver was told. A resolver that has gone has forgotten.
func (r *resolvedDNS) close(ctx context.Context) error {
	if err := r.call(ctx, "RevertLink", r.index); err != nil {
		r.log.Debug("resolver's link not reverted, it goes with the device", "err", err)
	}
	return r.conn.Close()
}
