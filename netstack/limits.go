// SPDX-License-Identifier: Apache-2.0

package netstack

// The default limits. Those for each source leave a third to the others, so
// that one program that runs wild on a machine whose device serves containers
// too does not lock them out.
const (
	// DefaultTCPInFlight bounds connection requests that wait for their
	// handler's decision or for the client to complete the handshake. Each
	// costs a goroutine and some 10 KB; what is over the limit is dropped, so
	// that the client's kernel tries again after a second.
	DefaultTCPInFlight = 8192
	// DefaultTCPInFlightPerSource is the same for one client address.
	DefaultTCPInFlightPerSource = DefaultTCPInFlight * 2 / 3
	// DefaultTCPFlows bounds connections altogether. It is the number of ports
	// that one client address has.
	DefaultTCPFlows = 64 << 10

	// DefaultUDPSessions bounds UDP sessions; a goroutine and a queue each.
	// At the limit, answered sessions of port 53 make room: a resolver that
	// takes a new port for each query needs thousands a second.
	DefaultUDPSessions = 8192
	// DefaultUDPSessionsPerSource is the same for one client address.
	DefaultUDPSessionsPerSource = DefaultUDPSessions * 2 / 3
)

const (
	// fullBufferFlows is how many connections get the full buffers. With more,
	// new ones get crowdedBuffer, fixed: 64 Ki connections whose upstream
	// stalls would else pin 256 GiB.
	fullBufferFlows = 1024
	crowdedBuffer   = 128 << 10
)

// Limits bound what clients can make a Stack hold. Zero means the default.
type Limits struct {
	TCPInFlight          int
	TCPInFlightPerSource int
	TCPFlows             int
	UDPSessions          int
	UDPSessionsPerSource int
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		limit *int
		value int
	}{
		{&l.TCPInFlight, DefaultTCPInFlight},
		{&l.TCPInFlightPerSource, DefaultTCPInFlightPerSource},
		{&l.TCPFlows, DefaultTCPFlows},
		{&l.UDPSessions, DefaultUDPSessions},
		{&l.UDPSessionsPerSource, DefaultUDPSessionsPerSource},
	} {
		if *d.limit <= 0 {
			*d.limit = d.value
		}
	}
	return l
}
