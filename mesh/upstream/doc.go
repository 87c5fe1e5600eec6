// SPDX-License-Identifier: Apache-2.0

// Package upstream makes connections to the endpoints of the mesh, in the way
// that the mesh's configuration asks for and in no other.
//
// A caller names a [Target], usually by [Manager.Pick], and gets
//
//   - by [Manager.Connect] a connection of its own, for a TCP flow;
//   - by [Manager.HTTP] a lease on a connection for one HTTP exchange: an
//     HTTP/1 connection out of a pool, or a stream of a shared HTTP/2 one.
//
// The transport belongs to the endpoint, not to the cluster: the first match of
// the cluster's transport_socket_matches decides between clear text, Istio's
// mutual TLS and HBONE. What is not built yet is refused by name. Nothing ever
// falls back to clear text.
//
// Pools are keyed by cluster, endpoint, SNI, accepted identities, own identity
// and certificate serial, never by the address alone: behind an east-west
// gateway one address serves many services, told apart by SNI, and a
// certificate that was renewed must not live on in old connections.
//
// Clusters of DNS names are resolved here, through the host's own resolvers;
// see [Config.Lookup].
//
// HTTP/2 stands on net/http's client connections ([net/http.Transport.NewClientConn],
// which x/net/http2 names as its successor). [HTTP2] is the seam behind which a
// multiplexer of our own can take its place.
package upstream
