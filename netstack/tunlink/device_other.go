// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tunlink

import (
	"errors"
	"fmt"
)

// What a port to another system has to supply: a device that reads and writes
// one packet a call. macOS's utun puts a 4 byte address family in front of each
// packet, Windows needs wintun's ring; neither has a vnet header, so that a
// large MTU takes the place of segmentation offload there.
var errNoDevice = fmt.Errorf("tun device on this system: %w", errors.ErrUnsupported)

type device struct{}

func openDevice(int) (device, error) { return device{}, errNoDevice }

func (*device) interrupt()                     {}
func (*device) close() error                   { return nil }
func (*device) read(*readBuffers) (int, error) { return 0, errNoDevice }
func (*device) write(*writeBuffers) error      { return errNoDevice }

type readBuffers struct{}

func newReadBuffers(_, _ []byte, _ bool) *readBuffers { return &readBuffers{} }

func (*readBuffers) setBody([]byte) {}

type writeBuffers struct{}

func (*writeBuffers) add([]byte) {}
func (*writeBuffers) reset()     {}
func (*writeBuffers) full() bool { return false }

func queueFull(error) bool { return false }
