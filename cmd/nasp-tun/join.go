// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

const (
	// pollInterval is how often the start looks whether istiod has refused us.
	pollInterval = 50 * time.Millisecond

	// patience is how long a person watches nothing happen.
	patience = 2 * time.Second
)

// A joinError says that this node did not become a member of the mesh.
type joinError struct {
	address string // of istiod
	err     error
}

func (e *joinError) Error() string { return fmt.Sprintf("join the mesh at %s: %v", e.address, e.err) }
func (e *joinError) Unwrap() error { return e.err }

// noAnswer is a join that ran out of time without any error to show.
func noAnswer(pending []string) error {
	if len(pending) == 0 {
		return fmt.Errorf("no certificate within %s", joinTimeout)
	}
	return fmt.Errorf("no whole configuration within %s: without %s", joinTimeout, strings.Join(pending, ", "))
}

// An ended error says that CMD's world ended before CMD began: by a signal that
// the user sent, or by somebody else's kill.
type endedError struct{ status host.ExitStatus }

func (e *endedError) Error() string { return "the set-up process was killed" }

// waitReady waits until the node is in the mesh. A refusal that waiting does not
// mend ends it at once: the roots do not fit, or the token is not accepted.
func (t *tunnel) waitReady(ctx context.Context, address string) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	slow := time.NewTimer(patience)
	defer slow.Stop()
	for {
		select {
		case <-t.mesh.Ready():
			return nil
		case <-t.world.Done():
			return &endedError{t.world.Wait()}
		case <-ctx.Done():
			err := t.mesh.LastError()
			if err == nil {
				err = noAnswer(t.mesh.Status().Istiod.Pending)
			}
			return &joinError{address, err}
		case <-slow.C:
			cause := ""
			if err := t.mesh.LastError(); err != nil {
				cause = ": " + err.Error()
			}
			fmt.Fprintf(t.stderr, "nasp-tun: waiting for istiod at %s%s\n", address, cause)
		case <-tick.C:
			if err := t.mesh.LastError(); hopeless(err) {
				return &joinError{address, err}
			}
		}
	}
}

// hopeless reports whether an error of the control plane is an answer rather
// than an absence. A running session waits even these out, since a cluster can be
// mended under it; a person who starts one is better told.
func hopeless(err error) bool {
	for _, target := range []error{
		identity.ErrUntrusted, identity.ErrTokenRefused, identity.ErrForbidden, identity.ErrNoToken,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
