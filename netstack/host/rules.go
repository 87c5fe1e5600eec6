// SPDX-License-Identifier: Apache-2.0

package host

// CaptureTable is the routing table that holds what is captured. Nothing of ours
// stands in the main one: no rule could lead a marked packet past it there.
const CaptureTable = 7777

// The priorities of our rules, before those of every VPN that was tried (netbird's
// are the first, at 105):
//
//	89: fwmark 0x4e000000/0xff000000 goto 91   our own sockets
//	90: iif lo lookup 7777                     what this host sends, not what it forwards
//	91: nop                                    the host's own rules follow
//
// One rule `not fwmark M iif lo` would not do: the inversion holds for the whole
// selector, so that it would catch forwarded packets.
const (
	ruleBypass  = 89
	ruleCapture = 90
	ruleTarget  = 91
)

// protoNasp is the routing protocol number of all our routes and rules, so that
// they can be told from everybody else's.
const protoNasp = 155
