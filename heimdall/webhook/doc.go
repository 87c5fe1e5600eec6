// SPDX-License-Identifier: Apache-2.0

// Package webhook puts nasp-tun into pods that ask for it by the label
// nasp.k8s.cisco.com/inject=true, in place of Istio's sidecar.
//
// The tunnel is a native sidecar: an init container that goes on running, so
// that the pod's other containers, init containers too, find the mesh there.
// It needs NET_ADMIN and the host's /dev/net/tun, which Pod Security calls
// privileged. A pod with the host's network is refused, since all of the node
// would be captured, and one that has Istio's sidecar already, since two would
// capture the same.
//
// Only what a pod calls out for goes through the tunnel. Calls into the pod
// reach its containers as they would without any mesh; therefore the pod does
// not get the label that would have other sidecars call it by mutual TLS.
package webhook
