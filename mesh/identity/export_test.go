// SPDX-License-Identifier: Apache-2.0

package identity

// For tests of the package from outside.
var (
	NewCertificate = newCertificate
	NewRequest     = newRequest
)
