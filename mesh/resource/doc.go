// SPDX-License-Identifier: Apache-2.0

// Package resource turns what the control plane sends into plain, validated
// structs. It is the only reader of Envoy's and istiod's protobuf.
//
// There is one Decode function for each type of resource, from the Any of a
// discovery response to one struct. What can go wrong has three outcomes:
//
//   - A resource that cannot be understood as a whole is an error that names
//     it. It becomes a NACK, and the last good version stays in force.
//   - A feature that is merely not built is left out, and named in the Ignored
//     list of its resource, so that it can be counted and shown. Each decoder
//     lists the fields that it understands; every other field that is set is
//     named, those of the future included. Nothing is ignored without a word.
//   - Where leaving something out would let traffic pass that was not meant to,
//     or would send it to the wrong place, the part refuses: a filter chain
//     with a security filter has Refused set, a condition that cannot be judged
//     never holds, a route that cannot be followed answers 503, and a transport
//     that cannot be spoken is Unsupported, never clear text.
//
// All structs are immutable once they are returned. Strings that many
// resources repeat are interned, since a big mesh has tens of thousands.
package resource
