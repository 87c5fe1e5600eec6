// SPDX-License-Identifier: Apache-2.0

package kube

import "strings"

// roles is what Enroll needs without a WorkloadGroup, and no more. Services
// are found by label, which RBAC cannot tell from reading all of a namespace.
const roles = `# Lets USER join the mesh as the service account ACCOUNT of NAMESPACE.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: nasp-tun-ACCOUNT, namespace: NAMESPACE}
rules:
- {apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [ACCOUNT], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: nasp-tun-ACCOUNT, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: nasp-tun-ACCOUNT}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: USER}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: nasp-tun-mesh, namespace: ISTIO}
rules:
- {apiGroups: [""], resources: [namespaces], resourceNames: [ISTIO], verbs: [get]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [CONFIGMAPS], verbs: [get]}
- {apiGroups: [""], resources: [services], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: nasp-tun-mesh-ACCOUNT, namespace: ISTIO}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: nasp-tun-mesh}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: USER}]
`

// Roles returns, in YAML, the Roles and RoleBindings by which a user may
// enrol as a service account. A gateway in a namespace of its own needs its
// Services to be listed there too.
func Roles(user, namespace, account, istioNamespace, revision string) string {
	c := Client{cfg: Config{Revision: either(revision, defaultRevision)}}
	maps := []string{rootConfigMap, c.revised("istio"), c.revised("istio-sidecar-injector")}
	return strings.NewReplacer(
		"USER", user, "NAMESPACE", namespace, "ACCOUNT", account,
		"CONFIGMAPS", strings.Join(maps, ", "), "ISTIO", either(istioNamespace, "istio-system"),
	).Replace(roles)
}
