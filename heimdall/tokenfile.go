// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxTokenFile bounds what is read as a token, so that a wrong path does not
// fill the memory.
const maxTokenFile = 64 << 10

var errTokenLarge = errors.New("too large for a token")

// ReadToken reads a token file. White space around the token is dropped.
func ReadToken(path string) (Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return Secret{}, fmt.Errorf("read access token: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return Secret{}, fmt.Errorf("read access token: %w", err)
	}
	if len(b) > maxTokenFile {
		return Secret{}, fmt.Errorf("read access token %s: %w", path, errTokenLarge)
	}
	s := NewSecret(string(b))
	if s.IsZero() {
		return Secret{}, fmt.Errorf("read access token %s: %w", path, ErrNoToken)
	}
	return s, nil
}

// writeToken replaces a token file in one step, so that nobody reads half a
// token and a full disk does not lose the old one. The file is its owner's
// alone, and the owner stays: a root process must not take a user's file away.
// A link stays a link.
func writeToken(path string, token Secret) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("replace access token: %w", err)
		}
	}()
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	old, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.WriteString(f, token.Reveal()+"\n")
	err = errors.Join(err, keepOwner(f, old), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
