// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// The parts of RFC 6455 that an echo needs.
const (
	wsGUID    = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // section 1.3
	wsFin     = 0x80
	wsMask    = 0x80
	wsClose   = 0x8
	wsPing    = 0x9
	wsPong    = 0xA
	wsLen16   = 126
	wsLen64   = 127
	wsMaxSize = 1 << 20 // of a frame that is taken
)

// handleWebSocket takes over the connection and returns each frame.
func handleWebSocket(rw http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || key == "" {
		rw.Header().Set("Upgrade", "websocket")
		http.Error(rw, "a WebSocket is needed", http.StatusUpgradeRequired)
		return
	}
	c, rd, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(key + wsGUID))
	fmt.Fprintf(rd, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	if err := rd.Flush(); err != nil {
		return
	}
	for {
		first, payload, err := readFrame(rd.Reader)
		if err != nil {
			return
		}
		if first&0xF == wsPing {
			first = first&^0xF | wsPong
		}
		if err := writeFrame(rd.Writer, first, payload); err != nil || first&0xF == wsClose {
			return
		}
	}
}

// readFrame reads a masked frame: its first byte and its payload.
func readFrame(r *bufio.Reader) (byte, []byte, error) {
	var h [2]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	if h[1]&wsMask == 0 {
		return 0, nil, fmt.Errorf("read frame: not masked")
	}
	n := uint64(h[1] &^ wsMask)
	switch n {
	case wsLen16:
		var b [2]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case wsLen64:
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(b[:])
	}
	if n > wsMaxSize {
		return 0, nil, fmt.Errorf("read frame: %d bytes are too many", n)
	}
	b := make([]byte, 4+n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, err
	}
	mask, payload := b[:4], b[4:]
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return h[0], payload, nil
}

// writeFrame writes a frame as servers do, without a mask.
func writeFrame(w *bufio.Writer, first byte, payload []byte) error {
	w.WriteByte(first)
	switch n := len(payload); {
	case n < wsLen16:
		w.WriteByte(byte(n))
	case n < 1<<16:
		w.WriteByte(wsLen16)
		w.Write(binary.BigEndian.AppendUint16(nil, uint16(n)))
	default:
		w.WriteByte(wsLen64)
		w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	}
	w.Write(payload)
	return w.Flush()
}
