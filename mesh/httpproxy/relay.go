// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// writeBuffer holds a head with a small body.
	writeBuffer = 4 << 10
	// relayBuffer carries bodies: two TLS records, or one netstack segment's
	// half. Larger ones gained nothing that could be measured.
	relayBuffer = 32 << 10
	// chunkFrame is what a chunk of up to relayBuffer needs around its data:
	// four hex digits and CRLF before, CRLF after.
	chunkFrame = 6 + 2
)

var relayBuffers = sync.Pool{New: func() any { b := make([]byte, 0, relayBuffer); return &b }}

// A writer gathers what goes to one side and writes it in few pieces: a head
// leaves together with the first bytes of its body, and a body is read straight
// into the buffer that it is written from. The first error stays.
type writer struct {
	dst   io.Writer
	b     []byte  // not yet written
	small []byte  // b's storage outside of relay
	large *[]byte // b's storage inside of it
	n     int64   // bytes taken, written or not
	err   error
}

func (w *writer) reset(dst io.Writer) {
	if w.small == nil {
		w.small = make([]byte, 0, writeBuffer)
	}
	w.dst, w.b, w.n, w.err = dst, w.small[:0], 0, nil
}

func (w *writer) str(s string) {
	w.b = append(w.b, s...)
	w.n += int64(len(s))
}

func (w *writer) bytes(p []byte) {
	w.b = append(w.b, p...)
	w.n += int64(len(p))
}

func (w *writer) field(name, value string) {
	w.b = append(append(append(append(w.b, name...), ": "...), value...), "\r\n"...)
	w.n += int64(len(name) + len(value) + 4)
}

func (w *writer) number(name string, v int64) {
	old := len(w.b)
	w.b = append(strconv.AppendInt(append(append(w.b, name...), ": "...), v, 10), "\r\n"...)
	w.n += int64(len(w.b) - old)
}

// fields writes header fields sorted by name, save those that the caller
// frames itself. keys is scratch space, returned for the next use.
func (w *writer) fields(h http.Header, keys []string) []string {
	keys = keys[:0]
	for k := range h {
		if !ours(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		for _, v := range h[k] {
			w.field(k, v)
		}
	}
	return keys
}

// ours reports whether a field is never copied from one side to the other: it
// frames the message, or is Envoy's word between its own parts.
func ours(name string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Trailer", "Host":
		return true
	case "X-Envoy-Attempt-Count": // for the endpoint, on hosts that ask for it
		return false
	}
	return strings.HasPrefix(name, "X-Envoy-")
}

// trailer announces the names of the trailer fields.
func (w *writer) trailer(t http.Header, keys []string) []string {
	keys = keys[:0]
	for k := range t {
		keys = append(keys, k)
	}
	if len(keys) > 0 {
		slices.Sort(keys)
		w.field("Trailer", strings.Join(keys, ", "))
	}
	return keys
}

// flush writes what was gathered.
func (w *writer) flush() error {
	if w.err == nil && len(w.b) > 0 {
		_, w.err = w.dst.Write(w.b)
	}
	w.b = w.b[:0]
	return w.err
}

// shrink gives the large buffer back once nothing is left in it.
func (w *writer) shrink() {
	if w.large != nil && len(w.b) == 0 {
		relayBuffers.Put(w.large)
		w.large, w.b = nil, w.small[:0]
	}
}

// drop ends the use of the writer, whatever is left in it.
func (w *writer) drop() {
	w.b = w.b[:0]
	w.shrink()
	w.dst = nil
}

// A side is where a relay failed.
type side uint8

const (
	sideNone  side = iota
	sideRead       // the source's end: cut short or malformed
	sideWrite      // the destination's
)

// relay writes a body to its end, with the framing that chunked tells. What the
// source gives is passed on at once, so that events and gRPC messages do not
// wait; the end, and a last piece that comes with it, wait for the caller's
// flush. touch is called for each piece.
func (w *writer) relay(body io.Reader, chunked bool, touch func(n int)) (side, error) {
	if w.large == nil {
		w.large = relayBuffers.Get().(*[]byte)
		w.b = append((*w.large)[:0], w.b...)
	}
	gap, tail := 0, 0
	if chunked {
		gap, tail = chunkFrame-2, 2
	}
	for {
		if cap(w.b)-len(w.b) < minRead+gap+tail {
			if err := w.flush(); err != nil {
				return sideWrite, err
			}
		}
		at := len(w.b)
		n, err := body.Read(w.b[at+gap : cap(w.b)-tail])
		if n > 0 {
			w.take(at, n, chunked)
			touch(n)
		}
		switch {
		case err == io.EOF:
			return sideNone, nil
		case err != nil:
			w.flush() // what came before the cut is the client's
			return sideRead, err
		}
		if err := w.flush(); err != nil {
			return sideWrite, err
		}
	}
}

// minRead is the least space that is worth a read.
const minRead = 2 << 10

// take adds n bytes that were read into the buffer, as a chunk if need be:
// the data then moves back to where the size's digits end.
func (w *writer) take(at, n int, chunked bool) {
	if !chunked {
		w.b = w.b[:at+n]
		w.n += int64(n)
		return
	}
	data := w.b[at+chunkFrame-2 : at+chunkFrame-2+n]
	w.b = append(strconv.AppendInt(w.b, int64(n), 16), "\r\n"...)
	w.b = append(append(w.b, data...), "\r\n"...)
	w.n += int64(len(w.b) - at)
}

// endChunks ends a chunked body.
func (w *writer) endChunks(trailer http.Header, keys []string) []string {
	w.str("0\r\n")
	keys = w.fields(trailer, keys)
	w.str("\r\n")
	return keys
}
