// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// stateVersion is that of the form of our files. It is raised when an older program
// could not undo what a newer one wrote.
const stateVersion = 1

// journalMagic begins a journal's first line; the version and the hash of all that
// follows the line come after it.
const journalMagic = "nasp-tun journal"

// A journal says what of ours would outlive the process: written and synced before
// each change, so that at every moment it names at least all that stands. What the
// kernel drops with the device (routes to it, addresses, the resolver's link) is not
// in it.
type journal struct {
	Name string `json:"name"`

	// Routing says that there may be rules 89 to 91 and routes without a device in
	// the table. They are found by number and protocol, and need no entry each.
	Routing bool `json:"routing,omitempty"`

	Files []savedFile `json:"files,omitempty"`
}

// A savedFile is a file that we replaced.
type savedFile struct {
	Path    string `json:"path"`
	Link    string `json:"link,omitempty"`    // it was a symbolic link to this
	Missing bool   `json:"missing,omitempty"` // there was none
	Mode    uint32 `json:"mode,omitempty"`
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	Content []byte `json:"content,omitempty"`
	Ours    string `json:"ours"` // hash of what we put in its place: only that is ever taken away
}

func (j journal) empty() bool { return !j.Routing && len(j.Files) == 0 }

// encode returns the journal as it is written.
func (j *journal) encode() ([]byte, error) { return seal(journalMagic, j) }

// decodeJournal reads what encode wrote for the session called name, or refuses it.
func decodeJournal(name string, text []byte) (journal, error) {
	var j journal
	if err := unseal(journalMagic, text, &j); err != nil {
		return journal{}, err
	}
	if j.Name != name {
		return journal{}, fmt.Errorf("%w, %q", errForeign, j.Name)
	}
	return j, nil
}

// seal writes what as JSON under a line that says what it is and holds its hash.
func seal(magic string, what any) ([]byte, error) {
	body, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, "%s %d sha256:%s\n", magic, stateVersion, contentHash(body)), body...), nil
}

// Reasons to refuse a file of ours.
var (
	errNotOurs     = errors.New("not written by nasp-tun")
	errNewerFormat = errors.New("written by a newer nasp-tun: use that one to clean up")
	errCorrupt     = errors.New("its content is not what was written (wrong hash)")
	errForeign     = errors.New("it is of another session")
)

// unseal reads what seal wrote.
func unseal(magic string, text []byte, what any) error {
	line, body, ok := bytes.Cut(text, []byte("\n"))
	rest, ours := strings.CutPrefix(string(line), magic+" ")
	if !ok || !ours {
		return errNotOurs
	}
	var version int
	var hash string
	if n, err := fmt.Sscanf(rest, "%d sha256:%s", &version, &hash); err != nil || n != 2 || version < 1 {
		return errNotOurs
	}
	if version > stateVersion {
		return errNewerFormat
	}
	if hash != contentHash(body) {
		return errCorrupt
	}
	if err := json.Unmarshal(body, what); err != nil {
		return fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return nil
}

func contentHash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A JournalError refuses a journal. Nothing is done then, neither a start nor a
// clean-up, since it may name changes that only it can tell how to undo.
type JournalError struct {
	Path string
	Err  error
}

func (e *JournalError) Error() string { return fmt.Sprintf("journal %s: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *JournalError) Unwrap() error { return e.Err }

// ByHand returns what an operator can do about it: how to see what is left of us on
// the host, how to take it away, and then the journal.
func (e *JournalError) ByHand() string {
	return fmt.Sprintf(`look at it, and undo by hand what is left:
  for f in -4 -6; do for p in %d %d %d; do ip $f rule del pref $p protocol %d; done; ip $f route flush table %d proto %d; done
  head -1 %s   # if it says %q, it is ours: put your own back
then remove %s`,
		ruleCapture, ruleBypass, ruleTarget, protoNasp, CaptureTable, protoNasp, ResolvConfPath, resolvConfBanner, e.Path)
}

// resolvConfBanner begins a resolv.conf that we wrote.
const resolvConfBanner = "# Written by nasp-tun"
