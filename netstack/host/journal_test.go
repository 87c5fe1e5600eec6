// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestJournalForm(t *testing.T) {
	want := journal{Name: "laptop", Routing: true, Files: []savedFile{{Path: "/etc/resolv.conf", Mode: 0o644, Content: []byte("nameserver \xff\n"), Ours: "00"}}}
	text, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeJournal("laptop", text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Whatever is cut off or flipped, it is refused.
	for i := range text {
		if _, err := decodeJournal("laptop", text[:i]); err == nil {
			t.Errorf("the first %d bytes were believed", i)
		}
		flipped := []byte(string(text))
		flipped[i] ^= 1
		if _, err := decodeJournal("laptop", flipped); err == nil {
			t.Errorf("byte %d was flipped and the rest believed", i)
		}
	}
	newer := []byte(strings.Replace(string(text), "journal 1 ", "journal 2 ", 1))
	for _, row := range []struct {
		name string
		text []byte
		want error
	}{
		{"laptop", nil, errNotOurs},
		{"laptop", []byte("{}\n"), errNotOurs},
		{"laptop", newer, errNewerFormat},
		{"another", text, errForeign},
		{"laptop", append(text, ' '), errCorrupt},
	} {
		if _, err := decodeJournal(row.name, row.text); !errors.Is(err, row.want) {
			t.Errorf("%q: got %v, want %v", row.text, err, row.want)
		}
	}
}

func FuzzJournal(f *testing.F) {
	j := journal{Name: "laptop", Routing: true}
	text, err := j.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		j, err := decodeJournal("laptop", text)
		if err == nil && j.Name != "laptop" {
			t.Errorf("a journal of %q was believed", j.Name)
		}
	})
}
