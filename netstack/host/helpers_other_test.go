// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package host

// helpers are for the private networks of Linux.
var helpers map[string]func(args []string) int
