// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"strings"
)

// A verdict is what an inspector says of the bytes seen so far.
type verdict uint8

const (
	needMore verdict = iota
	isNot
	is
)

// The few numbers of TLS (RFC 8446, 4 and 5.1) that a ClientHello needs.
const (
	recordHandshake    = 22
	recordHeader       = 5
	maxRecord          = 1<<14 + 256
	typeClientHello    = 1
	handshakeHeader    = 4
	extensionSNI       = 0
	extensionALPN      = 16
	serverNameHostType = 0
)

// A hello is what a filter chain can ask of a ClientHello.
type hello struct {
	serverName string // lower case; empty: none
	protocols  []string
}

// parseHello reads a TLS ClientHello from the first bytes of a connection. It
// checks no more than it needs: what is not a hello is left to the next
// inspector, and a strange one to the server that it is meant for.
func parseHello(b []byte) (hello, verdict) {
	msg, v := handshakeMessage(b)
	if v != is {
		return hello{}, v
	}
	r := reader{b: msg}
	r.skip(2 + 32)     // legacy_version, random
	r.skip(r.uint8())  // session id
	r.skip(r.uint16()) // cipher suites
	r.skip(r.uint8())  // compression methods
	if r.failed {
		return hello{}, isNot
	}
	var h hello
	if len(r.b) == 0 { // extensions are optional before TLS 1.3
		return h, is
	}
	extensions := reader{b: r.take(r.uint16())}
	for !r.failed && !extensions.failed && len(extensions.b) > 0 {
		kind := extensions.uint16()
		body := reader{b: extensions.take(extensions.uint16())}
		switch kind {
		case extensionSNI:
			h.serverName = body.serverName()
		case extensionALPN:
			h.protocols = body.protocols()
		}
		if body.failed {
			return hello{}, isNot
		}
	}
	if r.failed || extensions.failed {
		return hello{}, isNot
	}
	return h, is
}

// handshakeMessage joins the handshake records that carry the first message
// and returns its body if that is a ClientHello.
func handshakeMessage(b []byte) ([]byte, verdict) {
	var msg []byte
	for {
		// Whatever has arrived must fit before more is awaited: a protocol
		// that is not TLS is told at its first bytes.
		if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
			return nil, isNot
		}
		if len(b) < recordHeader {
			return nil, needMore
		}
		size := int(binary.BigEndian.Uint16(b[3:]))
		if size == 0 || size > maxRecord {
			return nil, isNot
		}
		part := b[recordHeader:]
		complete := len(part) >= size
		if complete {
			part = part[:size]
		}
		switch {
		case msg == nil:
			msg = part[:len(part):len(part)] // the usual single record is not copied
		case cap(msg) == len(msg):
			msg = append(make([]byte, 0, len(msg)+len(b)), msg...)
			fallthrough
		default:
			msg = append(msg, part...)
		}
		if len(msg) > 0 && msg[0] != typeClientHello {
			return nil, isNot
		}
		if len(msg) >= handshakeHeader {
			want := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
			if body := msg[handshakeHeader:]; len(body) >= want {
				return body[:want], is
			}
		}
		if !complete {
			return nil, needMore
		}
		b = b[recordHeader+size:]
	}
}

// A reader takes TLS's length-prefixed fields. After a failure it yields
// zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed, r.b = true, nil
		return nil
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) skip(n int) { r.take(n) }

func (r *reader) uint8() int {
	if b := r.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (r *reader) uint16() int {
	if b := r.take(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) serverName() string {
	list := reader{b: r.take(r.uint16())}
	name := ""
	for !r.failed && !list.failed && len(list.b) > 0 {
		kind := list.uint8()
		value := list.take(list.uint16())
		if kind == serverNameHostType && name == "" {
			name = strings.ToLower(strings.TrimSuffix(string(value), "."))
		}
	}
	r.failed = r.failed || list.failed
	return name
}

func (r *reader) protocols() []string {
	list := reader{b: r.take(r.uint16())}
	var names []string
	for !r.failed && !list.failed && len(list.b) > 0 {
		names = append(names, string(list.take(list.uint8())))
	}
	r.failed = r.failed || list.failed
	return names
}
