// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tunPath is the device that makes TUNs. A TUN belongs to the namespace in
// which this was opened, wherever the descriptor goes afterwards.
const tunPath = "/dev/net/tun"

// tunOffload is what netstack can take and give. Never TUN_F_USO: UDP
// superpackets were corrupted by several kernels and netstack has no use for
// them.
const tunOffload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

// openTUN makes a TUN in this network namespace, with vnet header and
// segmentation offload where the kernel has them. What was missing is in warnings.
func openTUN(name string) (d Device, warnings []string, err error) {
	d.FD = -1
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return d, nil, &os.PathError{Op: "open", Path: tunPath, Err: err}
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			d.FD = -1
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return d, nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	d.VnetHdr = err == nil
	if errors.Is(err, unix.EINVAL) {
		warnings = append(warnings, "TUN without virtio header: bulk transfers will be slow")
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return d, nil, fmt.Errorf("create tun %q: %w", name, err)
	}
	if d.VnetHdr {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffload); err != nil {
			warnings = append(warnings, fmt.Sprintf("TUN without segmentation offload (%v): bulk transfers will be slow", err))
		} else {
			d.TSO = true
		}
	}
	d.FD = fd
	return d, warnings, nil
}
