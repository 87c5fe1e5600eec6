// SPDX-License-Identifier: Apache-2.0

//go:build unix

package heimdall

import (
	"os"
	"syscall"
)

// keepOwner gives a file the owner and group of another.
func keepOwner(f *os.File, old os.FileInfo) error {
	st, ok := old.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil // only root can, and only root needs to
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}
