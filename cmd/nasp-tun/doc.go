// SPDX-License-Identifier: Apache-2.0

// Nasp-tun gives a program on a laptop an identity in an Istio mesh, without
// the program knowing: its traffic enters a TUN, and leaves it as Istio mTLS.
//
// This folder is the command line, and the only place where the rooms of the
// project meet. Read it in this order:
//
//   - main.go and root.go: what runs first, and the verbs;
//   - config.go: every setting, and where its value comes from;
//   - run.go: the whole program on one page: an enrolment leads to a mesh, a
//     mesh to a network namespace with a TUN, and only then CMD may run;
//   - session.go and admin.go: how a running session is found and asked;
//   - demo.go: the same run, against a mesh inside the process;
//   - errors.go: exit codes and hints, in one table.
//
// Standard output belongs to CMD, or to the answer of a verb. Whatever
// nasp-tun has to say of itself goes to standard error, and under exec only
// when something is wrong.
package main
