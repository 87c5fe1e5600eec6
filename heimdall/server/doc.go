// SPDX-License-Identifier: Apache-2.0

// Package server is Heimdall's face to laptops: POST /config over HTTPS.
//
// A request shows an access token, and is answered in this order:
//
//	too many from this address or with this token        429
//	no JWT whose one audience is a WorkloadGroup         401
//	TokenReview does not vouch for it                    401
//	the group is gone                                    404
//	not the group's account, no label, not allowed       403
//	the enrolment, with a fresh token for istiod         200
//
// The label on the group and the annotation on its account are looked at each
// time, since they are how somebody who has a token is shut out. Each answer
// leaves one audit line; no token is ever part of one.
//
// A second port, for the cluster alone, has /healthz, /readyz and /metrics.
// The server keeps nothing that another replica would need.
package server
