// SPDX-License-Identifier: Apache-2.0

// Package kubetest is the Kubernetes API that tests of Heimdall talk to.
//
// A [Cluster] is a real kube-apiserver with its etcd: what is tested against
// it is true. It needs both binaries. A [Fake] answers the few calls that
// Heimdall makes from a map; it is for faults that a real one cannot be made
// to show, and for machines without the binaries.
package kubetest
