// SPDX-License-Identifier: Apache-2.0

// Package xds keeps one delta ADS stream to the control plane and hands what
// arrives on it to a [Sink].
//
// It knows the protocol and nothing of the resources: a type is a URL, a
// resource a name, a version and bytes. The life of the stream is
//
//	connect ──> first requests, in the order of Config.Types ──> receive ─┐
//	   ^         (on a later stream: with what is already held)           │
//	   │                                                                  v
//	   └── back off <── stream ends <── ACK or NACK <── Sink.Update <── response
//
// Two kinds of message go to the server, and they are never mixed, since
// istiod takes a change of subscription inside an ACK for a fault: an answer
// carries the nonce of a response and changes nothing, and a spontaneous
// request has no nonce and changes the set of names.
//
// A type is either a wildcard, subscribed to by asking for no name, or named,
// and then [Client.Watch] says which names. A named type without names is not
// asked for at all, because a first request without names is a wildcard.
//
// # Bad resources
//
// The Sink applies the good resources of a response and returns the bad ones,
// which makes a NACK that names them. What the server sent before stays in
// force for those.
//
// # Reconnecting
//
// A stream ends often: istiod closes it every 30 minutes by default, and
// whenever it is restarted. Nothing is forgotten then. The next stream tells
// the server which resources are held (initial_resource_versions), so that it
// answers with what changed and what was removed meanwhile. A stream that
// lived and delivered is replaced at once and in silence; one that did not is
// retried with a growing, jittered delay.
//
// # Order and goroutines
//
// Run is two goroutines: one receives and calls Sink.Update, one sends. So
// Update is never called twice at the same time, responses are seen in the
// order of the server, and nothing that the Sink does can block a request.
package xds
