// SPDX-License-Identifier: Apache-2.0

package kubetest

// RootPEM stands for the mesh's root. Nothing that Heimdall does verifies with
// it; it only must look like one.
const RootPEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"

// Mesh is what Istio's charts leave in a cluster, for a Fake, with a group
// external/test-http.
const Mesh = `
/api/v1/namespaces/istio-system:
  metadata: {name: istio-system, labels: {topology.istio.io/network: network1}}
/api/v1/namespaces/istio-system/services/istiod:
  metadata: {name: istiod, labels: {app: istiod, istio: pilot, istio.io/rev: default}}
/api/v1/namespaces/istio-system/services/istiod-canary:
  metadata: {name: istiod-canary, labels: {app: istiod, istio.io/rev: canary}}
/api/v1/namespaces/istio-system/services/istio-eastwestgateway:
  metadata: {name: istio-eastwestgateway, labels: {istio: eastwestgateway, topology.istio.io/network: network1}}
  spec: {ports: [{port: 15443}, {port: 15012}]}
  status: {loadBalancer: {ingress: [{ip: 172.30.0.10}, {hostname: gateway.example}]}}
/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert:
  data: {root-cert.pem: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"}
/api/v1/namespaces/istio-system/configmaps/istio:
  data: {mesh: "defaultConfig: {meshId: mesh1}\ntrustDomain: td1\n"}
/api/v1/namespaces/istio-system/configmaps/istio-sidecar-injector:
  data: {values: '{"global":{"tag":"1.31.0-distroless","multiCluster":{"clusterName":"c1"},"proxy":{"clusterDomain":"k8s.local"}}}'}
/api/v1/namespaces/external/serviceaccounts/test-http:
  metadata: {name: test-http, annotations: {heimdall.nasp.k8s.cisco.com/allowed: "true"}}
/api/v1/namespaces/external/serviceaccounts/other:
  metadata: {name: other, annotations: {heimdall.nasp.k8s.cisco.com/allowed: "true"}}
/apis/networking.istio.io/v1beta1/namespaces/external/workloadgroups/test-http:
  metadata: {name: test-http, labels: {nasp.k8s.cisco.com/monitoring: "true"}}
  spec:
    metadata: {labels: {app: test-http, version: v2}}
    template: {serviceAccount: test-http, network: network2, labels: {app: lower, tier: edge}}
`

// Istio is what Istio's charts leave in a Cluster, with the group
// external/test-http and its account. The definition of WorkloadGroup is
// Istio's in name and versions, and takes any spec.
const Istio = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: workloadgroups.networking.istio.io}
spec:
  group: networking.istio.io
  names: {kind: WorkloadGroup, listKind: WorkloadGroupList, plural: workloadgroups, singular: workloadgroup}
  scope: Namespaced
  versions:
  - {name: v1beta1, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network1}}
---
apiVersion: v1
kind: Namespace
metadata: {name: external}
---
apiVersion: v1
kind: Namespace
metadata: {name: heimdall}
---
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: istio-system, labels: {app: istiod, istio: pilot, istio.io/rev: default}}
spec: {ports: [{name: https-dns, port: 15012}]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-eastwestgateway, namespace: istio-system, labels: {istio: eastwestgateway, topology.istio.io/network: network1}}
spec: {type: LoadBalancer, ports: [{name: tls, port: 15443}, {name: tls-istiod, port: 15012}]}
status: {loadBalancer: {ingress: [{ip: 172.30.0.10}, {hostname: gateway.example}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio-ca-root-cert, namespace: istio-system}
data: {root-cert.pem: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "defaultConfig: {meshId: mesh1}\ntrustDomain: td1\n"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: test-http, namespace: external, annotations: {heimdall.nasp.k8s.cisco.com/allowed: "true"}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: other, namespace: external}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: test-http, namespace: external, labels: {nasp.k8s.cisco.com/monitoring: "true"}}
spec:
  metadata: {labels: {app: test-http, version: v2}}
  template: {serviceAccount: test-http, network: network2}
`
