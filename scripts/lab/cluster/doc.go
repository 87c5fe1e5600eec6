// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Istio on one machine, without containers and
// without kubelets: etcd, kube-apiserver, istiod, and Envoy as sidecar and as
// east-west gateway, each a process in a network namespace.
//
//	nasp-lab-laptop                     nasp-lab-gateway          nasp-lab-node
//	nasp-tun ── 172.30.0.0/24 ──> Envoy :15443 :15012 :16443 ──┬─ etcd, kube-apiserver :6443
//	             and nothing else                              │  istiod :15012, and :15112 for the Envoys
//	                                    10.244.0.0/24 (bridge) ┤
//	                                                           ├─ nasp-lab-echo-v1: Envoy ─> echo
//	                                                           └─ nasp-lab-echo-v2: Envoy ─> echo
//
// What a kubelet, a scheduler and the controller-manager would do is done
// here: pods are objects whose status is written by hand, as are the
// EndpointSlices and the address of the LoadBalancer. See package objects.
//
// # Why two istiods
//
// The Envoy that can be had outside Istio's images is upstream Envoy. It lacks
// Istio's own filters and refuses a listener that names one. So the sidecars
// and the gateway are served by a second istiod, over the same API server, CA
// and configuration, that is told to send none of those filters. The one that
// nasp-tun talks to is an istiod with its defaults.
//
// # State
//
// The lab outlives the program that starts it. What it made is written into
// .cache/lab/run/state.json before it is made: each process with its start
// time, so that a pid that was given away again is never signalled, and each
// namespace. Down undoes exactly that.
package cluster
