// SPDX-License-Identifier: Apache-2.0

// Package istiopb declares the two messages of istiod that are part of no
// published API module: NDS's NameTable and WDS's Address. They agree with
// Istio's own on the wire, in type URL and field numbers, and hold no more
// than package resource reads: importing istio.io/istio for them would bring
// in Kubernetes as a whole.
package istiopb

//go:generate go -C ../../../scripts/protogen run . ../../mesh/resource istiopb/nametable.proto istiopb/workload.proto
