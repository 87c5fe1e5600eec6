// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// newSuffix is that of what is about to be renamed into a file's place. It stands in
// the same directory, where a crash may leave it: the next attempt and the clean-up
// overwrite and remove it.
const newSuffix = ".nasp-tun"

// save reads what stands at path, for the journal.
func save(path string) (savedFile, error) {
	f := savedFile{Path: path}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.Missing = true
		return f, nil
	}
	if err != nil {
		return f, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		f.Link, err = os.Readlink(path)
		return f, err
	}
	if !info.Mode().IsRegular() {
		return f, fmt.Errorf("%s: neither a file nor a link", path)
	}
	f.Mode = uint32(info.Mode().Perm())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(st.Uid), int(st.Gid)
	}
	f.Content, err = readSmall(path)
	return f, err
}

// readSmall reads a configuration file; one that is larger than such files are is
// refused, as it could not be put back whole.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err == nil && len(text) > maxResolvConf {
		err = fmt.Errorf("read %s: larger than %d bytes", path, maxResolvConf)
	}
	return text, err
}

// replaceFile puts a new file at path in one step, in place of a file or a link.
func replaceFile(path string, text []byte, mode fs.FileMode, uid, gid int) error {
	temporary := path + newSuffix
	_ = os.Remove(temporary)
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && (uid != os.Geteuid() || gid != os.Getegid()) {
		err = f.Chown(uid, gid)
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return syncParent(path)
}

// A restored says what putting a file back came to.
type restored int

const (
	fileRestored  restored = iota
	fileUntouched          // ours was never put there, or is gone already
	fileChanged            // somebody else wrote it since: left alone
)

// restore puts back what stood before, if what stands there now is ours.
func (f *savedFile) restore(dryRun bool) (restored, error) {
	if !dryRun {
		_ = os.Remove(f.Path + newSuffix)
	}
	now, err := save(f.Path)
	if err != nil {
		return fileChanged, err
	}
	switch {
	case now.Link == f.Link && now.Missing == f.Missing && string(now.Content) == string(f.Content):
		return fileUntouched, nil
	case now.Link != "" || now.Missing || contentHash(now.Content) != f.Ours:
		return fileChanged, nil
	case dryRun:
		return fileRestored, nil
	case f.Missing:
		err = os.Remove(f.Path)
	case f.Link != "":
		temporary := f.Path + newSuffix
		if err = os.Symlink(f.Link, temporary); err == nil {
			err = os.Rename(temporary, f.Path)
		}
	default:
		return fileRestored, replaceFile(f.Path, f.Content, fs.FileMode(f.Mode), f.UID, f.GID)
	}
	if err == nil {
		err = syncParent(f.Path)
	}
	return fileRestored, err
}

func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
