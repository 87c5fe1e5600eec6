// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"net/netip"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// The protocols of a Record.
const (
	TCP  = "tcp"
	UDP  = "udp"
	HTTP = "http"
	GRPC = "grpc"
)

// A Record is what is known of one TCP or UDP flow, or of one HTTP request. It
// is owned by one goroutine until it is handed over, and not used after.
type Record struct {
	Start    time.Time
	Duration time.Duration // 0: until now
	Protocol string        // TCP, UDP, HTTP or GRPC

	Src, Dst netip.AddrPort
	// Cluster and Endpoint are those of the last try; nil if it did not come
	// to that.
	Cluster  *resource.Cluster
	Endpoint *resource.Endpoint
	Upstream string // the address connected to
	PeerID   string // the SPIFFE ID that the peer proved
	MTLS     bool

	Method, Host, Path string
	Status             int
	GRPCStatus         string // the number, as text
	Route              string // the name of the route
	RequestID          string
	Tries              int

	// Flags are Envoy's response flags, comma-separated; empty: those of
	// Reason.
	Flags  string
	Reason Reason
	Err    error

	// BytesReceived and BytesSent are payload from and to the client: of a
	// TCP flow all of it, of a request the bodies. For a flow that was
	// Opened, Closed takes them from its Transfer.
	BytesReceived, BytesSent int64
	// RequestBytes and ResponseBytes are a request's and its answer's size
	// on the client's wire, heads included; 0: those of the bodies.
	RequestBytes, ResponseBytes int64
	// RequestMessages and ResponseMessages count gRPC messages.
	RequestMessages, ResponseMessages int64

	transfer *Transfer // set by Opened
}

// Fail notes a failure, unless one was noted before: the first is the cause,
// later ones its echoes.
func (r *Record) Fail(reason Reason, err error) {
	if r.Reason == OK {
		r.Reason, r.Err = reason, err
	}
}

func (r *Record) flags() string {
	switch {
	case r.Flags != "":
		return r.Flags
	case r.Reason == Timeout && r.Protocol == TCP:
		return "UF" // only connecting can time out there
	}
	return r.Reason.Flag()
}

func (r *Record) duration() time.Duration {
	if r.Duration != 0 {
		return r.Duration
	}
	return time.Since(r.Start)
}
