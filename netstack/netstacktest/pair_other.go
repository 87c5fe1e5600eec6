// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package netstacktest

import (
	"errors"
	"testing"
)

func packetPair(tb testing.TB) (theirs, ours, raw int) {
	tb.Helper()
	tb.Skip("needs a pair of packet sockets, which this system does not have")
	return -1, -1, -1
}

func closeDescriptor(int) {}

// Inject needs Linux.
func (*Client) Inject([]byte) error { return errors.ErrUnsupported }

func hangUp(int) {}
