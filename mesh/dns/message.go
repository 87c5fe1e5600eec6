// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	mdns "github.com/miekg/dns"
)

const (
	headerSize = 12
	minUDPSize = mdns.MinMsgSize // what every client takes (RFC 1035, 4.2.1)
	maxUDPSize = 4096            // what we send at most, whatever a client says
)

// Exchange answers one message. Garbage gets FORMERR, or nothing at all where
// an answer could go round in circles: then the answer is nil. The error tells
// that ctx has ended.
func (s *Server) Exchange(ctx context.Context, q []byte, tcp bool) ([]byte, error) {
	answer, forward := s.begin(q, tcp)
	if forward == nil {
		return answer, nil
	}
	return s.forward(ctx, forward, tcp)
}

// begin answers what can be answered without asking anybody, and else returns
// the question to forward.
func (s *Server) begin(q []byte, tcp bool) (answer []byte, forward *mdns.Msg) {
	s.stats.queries.Add(1)
	if len(q) < headerSize || q[2]&0x80 != 0 { // too short to answer, or an answer itself
		s.stats.malformed.Add(1)
		return nil, nil
	}
	if opcode := q[2] >> 3 & 0xf; opcode != mdns.OpcodeQuery {
		return headerOnly(q, mdns.RcodeNotImplemented), nil
	}
	m := new(mdns.Msg)
	if binary.BigEndian.Uint16(q[4:]) != 1 || m.Unpack(q) != nil || len(m.Question) != 1 {
		s.stats.malformed.Add(1)
		return headerOnly(q, mdns.RcodeFormatError), nil
	}
	switch opt := m.IsEdns0(); {
	case opt != nil && opt.Version() != 0:
		return s.answer(m, tcp, mdns.RcodeBadVers, nil), nil
	case m.Question[0].Qtype == mdns.TypeAXFR || m.Question[0].Qtype == mdns.TypeIXFR:
		return s.answer(m, tcp, mdns.RcodeRefused, nil), nil
	}
	if rcode, rrs, ok := s.resolve(m.Question[0]); ok {
		s.stats.answered.Add(1)
		return s.answer(m, tcp, rcode, rrs), nil
	}
	return nil, m
}

// headerOnly answers a message that could not be read.
func headerOnly(q []byte, rcode byte) []byte {
	a := make([]byte, headerSize)
	copy(a, q[:4])
	a[2] = a[2]&0x79 | 0x80 // QR, with the opcode and RD of the question
	a[3] = rcode
	return a
}

// answer builds an answer of ours.
func (s *Server) answer(q *mdns.Msg, tcp bool, rcode int, rrs []mdns.RR) []byte {
	a := new(mdns.Msg)
	a.SetRcode(q, rcode)
	a.Authoritative = true
	a.RecursionAvailable = true
	a.Answer = rrs
	if opt := q.IsEdns0(); opt != nil {
		a.SetEdns0(ourUDPSize, opt.Do())
	}
	return s.pack(a, q, tcp)
}

// pack writes an answer. One that is too large for the client's UDP is cut and
// marked so, and the client comes again by TCP.
func (s *Server) pack(a, q *mdns.Msg, tcp bool) []byte {
	a.Compress = true
	a.Truncate(limit(q, tcp))
	b, err := a.Pack()
	if err != nil {
		s.log.Debug("dns answer not packed", "name", q.Question[0].Name, "err", err)
		return failure(q)
	}
	return b
}

// failure is SERVFAIL.
func failure(q *mdns.Msg) []byte {
	a := new(mdns.Msg)
	a.SetRcode(q, mdns.RcodeServerFailure)
	a.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		a.SetEdns0(ourUDPSize, opt.Do())
	}
	b, err := a.Pack()
	if err != nil { // the name of the question cannot be written back
		return nil
	}
	return b
}

// records are the addresses of the type asked for, in random order: many
// clients take the first.
func records(q mdns.Question, v4, v6 []netip.Addr) []mdns.RR {
	var rrs []mdns.RR
	header := mdns.RR_Header{Name: q.Name, Class: mdns.ClassINET, Ttl: ttl}
	if q.Qtype == mdns.TypeA || q.Qtype == mdns.TypeANY {
		header.Rrtype = mdns.TypeA
		for _, a := range v4 {
			rrs = append(rrs, &mdns.A{Hdr: header, A: a.AsSlice()})
		}
	}
	if q.Qtype == mdns.TypeAAAA || q.Qtype == mdns.TypeANY {
		header.Rrtype = mdns.TypeAAAA
		for _, a := range v6 {
			rrs = append(rrs, &mdns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
	return rrs
}

// forward asks the host's resolvers and fits what they say to the client.
func (s *Server) forward(ctx context.Context, q *mdns.Msg, tcp bool) ([]byte, error) {
	select {
	case s.forwards <- struct{}{}:
		defer func() { <-s.forwards }()
	default:
		s.stats.refused.Add(1)
		return failure(q), nil
	}
	s.stats.forwarded.Add(1)
	a, err := s.cfg.Forward(ctx, q, tcp)
	if err != nil {
		s.stats.failed.Add(1)
		s.log.Debug("dns question not answered", "name", q.Question[0].Name, "err", err)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return failure(q), nil
	}
	a.Id = q.Id
	return s.pack(a, q, tcp), nil
}

// limit is the size of the largest answer that the client takes.
func limit(q *mdns.Msg, tcp bool) int {
	if tcp {
		return mdns.MaxMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), minUDPSize), maxUDPSize)
	}
	return minUDPSize
}
