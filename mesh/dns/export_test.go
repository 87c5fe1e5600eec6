// SPDX-License-Identifier: Apache-2.0

package dns

// MaxForwards is for the test that reaches it.
const MaxForwards = maxForwards
