// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// nsswitchPath says which sources libc asks for names.
const nsswitchPath = "/etc/nsswitch.conf"

// tmpfsFlags suit a file system that holds one text or nothing.
const tmpfsFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountFile puts a read-only file with the given content over path, for this mount
// namespace only. Where path is a symlink the mount is on the link itself: one
// on its target vanishes without a word when systemd-resolved replaces the target
// by rename (rootless-containers/rootlesskit#4), and the target may not even exist.
func mountFile(path string, content []byte) error {
	at, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(at)
	if err = mountDetached(at, content); err == nil {
		return nil
	}
	// Kernels before 5.2 lack the calls, those before 6.15 do not clone from a
	// detached mount, and some sandboxes know only the old call.
	if old := mountBound(at, content); old != nil {
		return fmt.Errorf("mount over %s: %w", path, errors.Join(old, err))
	}
	return nil
}

// mountDetached attaches a file of a tmpfs that is never visible anywhere.
func mountDetached(at int, content []byte) error {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mfd)
	if err := writeAt(mfd, content); err != nil {
		return err
	}
	tree, err := unix.OpenTree(mfd, mountedName, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &readOnly); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", at, "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// mountBound does the same with the calls of old kernels: a tmpfs over some
// directory, for a moment in which nobody else is in this mount namespace. No file
// is ever made on the host's disk, so none can be left there.
func mountBound(at int, content []byte) error {
	const shelf = "/dev"
	if err := unix.Mount("tmpfs", shelf, "tmpfs", tmpfsFlags, ""); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: shelf, Err: err}
	}
	err := bindFrom(shelf, at, content)
	return errors.Join(err, os.NewSyscallError("umount", unix.Unmount(shelf, unix.MNT_DETACH)))
}

func bindFrom(shelf string, at int, content []byte) error {
	dir, err := unix.Open(shelf, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: shelf, Err: err}
	}
	defer unix.Close(dir)
	if err := writeAt(dir, content); err != nil {
		return err
	}
	// Of the file system, since the mount to come has no path to name it by.
	if err := unix.Mount("", shelf, "", unix.MS_REMOUNT|unix.MS_RDONLY|tmpfsFlags, ""); err != nil {
		return os.NewSyscallError("remount read-only", err)
	}
	target := "/proc/self/fd/" + strconv.Itoa(at)
	if err := unix.Mount(filepath.Join(shelf, mountedName), target, "", unix.MS_BIND, ""); err != nil {
		return os.NewSyscallError("bind mount", err)
	}
	return nil
}

// mountedName is the file's name on its tmpfs; it shows in /proc/self/mountinfo.
const mountedName = "nasp-tun"

// writeAt makes the file in an empty tmpfs, with the mode of the files that it
// stands for, whatever the caller's umask.
func writeAt(dir int, content []byte) error {
	fd, err := unix.Openat(dir, mountedName, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), mountedName)
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// resolverDirs hold the sockets by which libc asks a daemon of the host's in
// place of DNS.
var resolverDirs = []string{"/run/nscd", "/var/run/nscd", "/run/systemd/resolve"}

// hideResolvers covers those directories. libc passes on to DNS when a socket
// is missing. A directory that is made later, by a daemon started meanwhile, is not
// hidden.
func hideResolvers() error {
	var hidden []string
	for _, dir := range resolverDirs {
		// /var/run is /run nearly everywhere: cover it once.
		real, err := filepath.EvalSymlinks(dir)
		if err != nil || slices.Contains(hidden, real) {
			continue
		}
		if info, err := os.Stat(real); err != nil || !info.IsDir() {
			continue
		}
		if err := unix.Mount("tmpfs", real, "tmpfs", tmpfsFlags|unix.MS_RDONLY, "mode=755,size=4k"); err != nil {
			return &os.PathError{Op: "hide", Path: real, Err: err}
		}
		hidden = append(hidden, real)
	}
	return nil
}
