// SPDX-License-Identifier: Apache-2.0

// Package controller keeps, for each WorkloadGroup that asks for it, a Secret
// with an access token for Heimdall.
//
//	WorkloadGroup GROUP                         Secret GROUP-nasp-token
//	label nasp.k8s.cisco.com/monitoring=true -> type nasp.k8s.cisco.com/access-token
//	spec.template.serviceAccount: ACCOUNT       key token: a token of ACCOUNT for the
//	                                            audience nasp-heimdall:workloadgroup:NS:GROUP
//
// A token is replaced at half its life, and the Secret goes with the label,
// the group or the account. The account must consent by the annotation
// heimdall.nasp.k8s.cisco.com/allowed=true: who may edit groups could
// otherwise have a token of any account of the namespace.
//
// Heimdall is no master key. It works in the namespaces that it is given, by
// Roles there. It neither lists nor watches Secrets, which would show it all
// of them: each group's Secret is asked for by name, twice a minute, and so a
// deleted one comes back. A Secret of that name which the group does not own
// is left as it is.
//
// What happens to a group is told by Events on it, once for each change.
package controller
