// SPDX-License-Identifier: Apache-2.0

// Package kube builds a [heimdall.Enrollment] from what a cluster knows of
// its mesh. Heimdall's server uses it with the rights of its own account, and
// nasp-tun with those of a kubeconfig.
//
// Everything is looked up, by names that Istio itself fixes:
//
//	where istiod is reached    Service labelled istio=eastwestgateway: its load balancers
//	its certificate's name     Service labelled app=istiod, istio.io/rev=REVISION
//	roots                      ConfigMap istio-ca-root-cert
//	trust domain, mesh ID      ConfigMap istio or istio-REVISION
//	cluster ID, DNS domain     ConfigMap istio-sidecar-injector or that of the revision
//	network of the cluster     label topology.istio.io/network of Istio's namespace
//	who the workload is        WorkloadGroup, if there is one
//	token for istiod           TokenRequest, audience istio-ca
//
// A [Client] speaks REST with JSON through client-go's transport, which knows
// kubeconfigs, exec plug-ins and token files. The typed clientset is not used:
// linking it costs a laptop 14 MB of memory before it does anything.
package kube
