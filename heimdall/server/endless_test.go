// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"io"
	"sync/atomic"
)

// endless is a body of spaces, which JSON takes any number of.
type endless struct {
	left int64
	read atomic.Int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := min(int64(len(p)), e.left-e.read.Load())
	if n == 0 {
		return 0, io.EOF
	}
	for i := range p[:n] {
		p[i] = ' '
	}
	e.read.Add(n)
	return int(n), nil
}
