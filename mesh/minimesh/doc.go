// SPDX-License-Identifier: Apache-2.0

// Package minimesh is a whole service mesh in one process: a control plane, a
// certificate authority and a few workloads behind mutual TLS. It serves
// `nasp-tun demo`, where a newcomer sees the product work without a cluster,
// and the tests, which need a mesh that can be made to misbehave.
//
// It is small but not simplified where a client could tell. The control plane
// speaks delta ADS on go-control-plane and the resources have the shape that
// istiod 1.31 sends to a sidecar node: the listeners 0.0.0.0_80 and
// VIP_9000, the route configuration 80, clusters with
// transport_socket_matches, endpoints with their tlsMode, the name table. The
// authority is an istio.v1.auth.IstioCertificateService that takes a token or
// the current certificate and ignores what a request asks to be called. The
// workloads end TLS as a sidecar does: the filter chain is chosen by the ALPN
// list that the client offers, a client certificate of the mesh is demanded,
// and x-forwarded-client-cert tells the application who called.
//
//	            ┌────────────── Mesh ───────────────┐
//	laptop ──── │ istiod: ADS + CA                  │  token or certificate
//	   │        │   views: one set of resources     │
//	   │        │   per namespace of the client     │
//	   └─ mTLS ─│ workloads: one socket a port      │  HTTP, gRPC, TCP echo
//	            └───────────────────────────────────┘
//
// [New] checks a [Config], [Mesh.Start] opens everything on loopback and
// [Mesh.Close] joins all of it. In between the mesh can be changed: services
// come and go ([Mesh.SetService]), endpoints fall ill ([Mesh.SetFault]), istiod
// goes away and comes back ([Mesh.StopIstiod], [Mesh.StartIstiod]), tokens are
// refused, certificates live for seconds. [Mesh.WaitSynced] tells when every
// client has acknowledged the last change, so that no test has to sleep.
//
// The package stands alone: it imports nothing of the product, so that an
// error in the product's reading of a protocol cannot hide in both ends.
package minimesh
