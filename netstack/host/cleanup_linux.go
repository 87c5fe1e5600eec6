// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A CleanUpConfig says what to clean up after.
type CleanUpConfig struct {
	Dir    string // state directory
	Name   string // session
	DryRun bool   // only say what would be done

	// KeepRoutes leaves the rules and the unreachable routes: after a crash, until
	// the next run's own stand, so that nothing leaves in clear meanwhile.
	KeepRoutes bool
}

// CleanUp undoes what a session has left on the host and needs no daemon. It returns
// what it did, or would do. A session that lives is refused with a [*HeldError], a
// journal that cannot be trusted with a [*JournalError]; and only what is provably ours
// is taken away.
//
// Without a journal it still looks for our rules and routes, which their protocol
// number tells from all others.
func CleanUp(cfg CleanUpConfig) (did []string, err error) {
	s, err := OpenState(cfg.Dir, cfg.Name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	did, err = s.restoreFiles(cfg.DryRun)
	if cfg.KeepRoutes {
		return did, err
	}
	done, undo := undoRouting(cfg.DryRun, s.at)
	did, err = append(did, done...), errors.Join(err, undo)
	if undo == nil && !cfg.DryRun && s.journal().Routing {
		err = errors.Join(err, s.note("routing undone", func(j *journal) { j.Routing = false }))
	}
	return did, err
}

// restoreFiles puts back the files of the journal and takes each that is settled off
// it. A file that somebody else has written since is theirs: settled too.
func (s *State) restoreFiles(dryRun bool) (did []string, err error) {
	var errs []error
	for _, f := range s.journal().Files {
		how, err := f.restore(dryRun)
		if err != nil {
			errs = append(errs, fmt.Errorf("put back %s: %w", f.Path, err))
			continue
		}
		switch how {
		case fileRestored:
			did = append(did, "put back "+f.Path)
		case fileChanged:
			did = append(did, "left "+f.Path+" alone: it is not what nasp-tun wrote")
		case fileUntouched:
		}
		s.at("file restored")
		if !dryRun {
			errs = append(errs, s.note("file settled", func(j *journal) { j.dropFile(f.Path) }))
		}
	}
	return did, errors.Join(errs...)
}

func (j *journal) dropFile(path string) {
	kept := j.Files[:0]
	for _, f := range j.Files {
		if f.Path != path {
			kept = append(kept, f)
		}
	}
	j.Files = kept
}

// A BusyError says that the capture table of this network namespace serves a device
// that lives.
type BusyError struct{ Device string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("routing table %d leads into device %s: another nasp-tun runs here", CaptureTable, e.Device)
}

// undoRouting deletes every rule and route of ours: rules first, the capture of them
// before the others. A table that leads into a living device is not left over.
func undoRouting(dryRun bool, step func(string)) (did []string, err error) {
	rt, err := newRTNL()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rt.close()) }()
	rt.strict()
	routes, err := ownRoutes(rt)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.index != 0 && r.kind == unix.RTN_UNICAST {
			return nil, &BusyError{Device: rt.deviceName(r.index)}
		}
	}
	did, err = deleteRules(rt, dryRun, step)
	if err != nil {
		return did, err
	}
	return flushRoutes(rt, 0, routes, did, dryRun, step)
}

func deleteRules(rt *rtnl, dryRun bool, step func(string)) (did []string, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := rt.rules(family)
		if err != nil {
			return did, err
		}
		for _, priority := range ruleUndoOrder {
			n := 0
			for _, k := range list {
				if k.ours() && int(k.priority) == priority {
					n++
				}
			}
			if n == 0 {
				continue
			}
			if !dryRun {
				if _, err := rt.delRule(family, priority); err != nil {
					return did, err
				}
				step(fmt.Sprintf("rule %d of family %d deleted", priority, family))
			}
			did = append(did, fmt.Sprintf("deleted IPv%d rule %d", version(family), priority))
		}
	}
	return did, nil
}

func flushRoutes(rt *rtnl, device int, routes []kernelRoute, did []string, dryRun bool, step func(string)) ([]string, error) {
	t := routeTable{rt: rt, index: device, have: make(map[tableRoute]struct{})}
	for _, r := range routes {
		t.have[tableRoute{r.dst, r.kind}] = struct{}{}
	}
	if len(t.have) == 0 {
		return did, nil
	}
	if !dryRun {
		if err := t.apply(nil); err != nil {
			return did, err
		}
		step("routes deleted")
	}
	return append(did, fmt.Sprintf("deleted %d routes of table %d", len(routes), CaptureTable)), nil
}

// ownRoutes returns our routes in the capture table, of both families.
func ownRoutes(rt *rtnl) (own []kernelRoute, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := rt.routes(family, CaptureTable)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if r.protocol != protoNasp {
				continue
			}
			own = append(own, r)
		}
	}
	return own, nil
}

func version(family int) int {
	if family == unix.AF_INET {
		return 4
	}
	return 6
}
