// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"log/slog"

	"github.com/nasp-tun/nasp-tun/netstack/tunlink"
)

// Stats are the counts of a Stack. What is not said to be a number of now
// counts from the start.
type Stats struct {
	Device tunlink.Stats

	TCP  TCPStats
	UDP  UDPStats
	ICMP ICMPStats
}

// TCPStats counts connections and what happened to requests for them.
type TCPStats struct {
	InFlight int // now: requests without a decision, or in the handshake
	Open     int // now: accepted, and the handler has not returned

	Requests uint64 // became a flow
	Accepted uint64
	Rejected uint64 // by the handler
	Failed   uint64 // accepted by the handler, but the client did not complete
	Gone     uint64 // the client gave up before a decision

	DuplicateSYN   uint64 // of a request that was in flight
	ReusedTimeWait uint64 // connections ended in TIME_WAIT for a new one

	RefusedInFlight  uint64 // SYNs dropped: Limits.TCPInFlight
	RefusedPerSource uint64 // SYNs dropped: Limits.TCPInFlightPerSource
	RefusedFlows     uint64 // SYNs dropped: Limits.TCPFlows

	Retransmits    uint64 // towards the client; on a device that keeps order and drops nothing they mean a stall
	Timeouts       uint64
	ResetsSent     uint64
	ResetsReceived uint64
	ChecksumErrors uint64 // only without vnet header; else see Device.RxChecksum
}

// UDPStats counts sessions.
type UDPStats struct {
	Sessions int // now

	Began    uint64
	Accepted uint64
	Rejected uint64
	Idle     uint64 // ended by the idle limit
	Evicted  uint64 // of port 53 and answered, ended for a new one at a limit

	RefusedSessions  uint64 // datagrams dropped: Limits.UDPSessions
	RefusedPerSource uint64 // datagrams dropped: Limits.UDPSessionsPerSource
	Malformed        uint64
	Overflow         uint64 // datagrams dropped: the handler does not read
}

// ICMPStats counts pings by their answer.
type ICMPStats struct {
	EchoAnswered    uint64
	EchoUnreachable uint64
}

// Stats returns the counts.
func (s *Stack) Stats() Stats {
	return Stats{
		Device: s.link.Stats(),
		TCP:    s.tcpStats(),
		UDP:    s.udpStats(),
		ICMP: ICMPStats{
			EchoAnswered:    s.echo.answered.Load(),
			EchoUnreachable: s.echo.unreachable.Load(),
		},
	}
}

func (s *Stack) tcpStats() TCPStats {
	t, g := s.tcp, s.net.Stats().TCP
	t.mu.Lock()
	inFlight, open := len(t.pending), len(t.open)
	t.mu.Unlock()
	return TCPStats{
		InFlight:         inFlight,
		Open:             open,
		Requests:         t.count.flows.Load(),
		Accepted:         t.count.accepted.Load(),
		Rejected:         t.count.rejected.Load(),
		Failed:           t.count.failed.Load(),
		Gone:             t.count.gone.Load(),
		DuplicateSYN:     t.count.duplicateSYN.Load(),
		ReusedTimeWait:   t.count.reusedTimeWait.Load(),
		RefusedInFlight:  t.count.refusedInFlight.Load(),
		RefusedPerSource: t.count.refusedPerSource.Load(),
		RefusedFlows:     t.count.refusedFlows.Load(),
		Retransmits:      g.Retransmits.Value(),
		Timeouts:         g.Timeouts.Value(),
		ResetsSent:       g.ResetsSent.Value(),
		ResetsReceived:   g.ResetsReceived.Value(),
		ChecksumErrors:   g.ChecksumErrors.Value(),
	}
}

func (s *Stack) udpStats() UDPStats {
	u := s.udp
	u.mu.Lock()
	sessions := len(u.sessions)
	u.mu.Unlock()
	return UDPStats{
		Sessions:         sessions,
		Began:            u.count.sessions.Load(),
		Accepted:         u.count.accepted.Load(),
		Rejected:         u.count.rejected.Load(),
		Idle:             u.count.idle.Load(),
		Evicted:          u.count.evicted.Load(),
		RefusedSessions:  u.count.refusedSessions.Load(),
		RefusedPerSource: u.count.refusedPerSource.Load(),
		Malformed:        u.count.malformed.Load(),
		Overflow:         u.count.overflow.Load(),
	}
}

// refused is how many packets the limits have cost.
func (s Stats) refused() uint64 {
	return s.TCP.RefusedInFlight + s.TCP.RefusedPerSource + s.TCP.RefusedFlows +
		s.UDP.RefusedSessions + s.UDP.RefusedPerSource
}

// pressure remembers whether limits were refusing, so that the log says when
// that begins and ends, not how often it happened in between.
type pressure struct {
	refused  uint64
	refusing bool
	since    uint64
}

func (p *pressure) report(log *slog.Logger, now Stats) {
	before := p.refused
	p.refused = now.refused()
	switch refusing := p.refused > before; {
	case refusing && !p.refusing:
		p.refusing, p.since = true, before
		log.Warn("flows are refused: a limit is reached", "refused", p.refused-before,
			"in_flight", now.TCP.InFlight, "connections", now.TCP.Open, "sessions", now.UDP.Sessions)
	case !refusing && p.refusing:
		p.refusing = false
		log.Info("flows are no longer refused", "refused", p.refused-p.since)
	}
}
