// SPDX-License-Identifier: Apache-2.0

// Package heimdall is how a machine outside the cluster becomes a member of
// the mesh: it shows an access token to a server in the cluster and gets an
// [Enrollment], everything that is needed to join.
//
//	laptop                               Heimdall                       istiod
//	  │ POST /config, Bearer access token  │                              │
//	  │───────────────────────────────────>│ whose token is this?         │
//	  │<───────────────────────────────────│ its workload group, labels,  │
//	  │   address and roots of istiod,     │ network, a token for istiod  │
//	  │   a token for it, who I am         │                              │
//	  │───────────────────────────────────────────────────────────────────>│
//
// Both ends are here. A [Client] asks once; a [Source] asks again for ever, so
// that the token for istiod never runs out and the access token itself is
// renewed before it does. [Handler] is the server's side without Kubernetes:
// its callback tells what a token is good for.
//
// There are two wire forms. The first is that of nasp's Heimdall, with the Go
// field names of its structs, so that either end can be nasp's. The second is
// ours, asked for by the media type [MediaType], and carries what the first
// has no field for: the renewed access token and the lives of both tokens.
//
// The server is always verified: a stranger in its place could take the token
// and give roots of his own. Tokens are of the type [Secret], which prints as
// [redacted] wherever it is printed.
package heimdall
