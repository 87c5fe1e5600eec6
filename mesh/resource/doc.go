// SPDX-License-Identifier: Apache-2.0

// Package resource turns what the control plane sends into plain, validated
// structs. It is the only reader of Envoy's and istiod's protobuf.
//
// A resource that cannot be understood as a whole is an error, which becomes
// a NACK. A feature that is merely not supported is left out and named in the
// Ignored list of its resource, so that it can be counted and shown; a
// security feature that is not supported makes its part refuse traffic.
//
// All structs are immutable once they are returned.
package resource
