// SPDX-License-Identifier: Apache-2.0

// Package host is what nasp-tun asks of the operating system: a private world
// for one program, the sockets that leave the machine, and the machine's own
// resolvers.
//
// # One program in a world of its own
//
// [StartExec] makes namespaces for a program and leaves the host as it was. No
// keeper process, no setuid, no journal: all that it makes dies with the last
// file descriptor.
//
//	parent (host's network)                      stage 2 (new user*, network, mount namespaces)
//	 StartExec: plan as JSON       ──────────>   mounts: resolv.conf, hide nscd and systemd-resolved
//	                                             TUN, addresses, routes, sysctls
//	 receives [tun, rtnetlink, …]  <──────────   SCM_RIGHTS
//	 (caller starts the netstack)
//	 Exec.Start: "go"              ──────────>   drop privileges, PDEATHSIG, execve(CMD)
//	 end of file = CMD runs        <──────────   or the error of execve
//	 Exec.Wait                                   * only without CAP_SYS_ADMIN and CAP_NET_ADMIN
//
// Stage 2 is this program again, started as `PROGRAM __exec N …`; [Stage2] must
// therefore be the first statement of main. A socket keeps the namespace that
// it was made in, so the parent acts inside by holding the fds: it reads the
// program's packets, serves sockets bound there and changes routes
// ([Exec.SetIPv6]) without ever entering.
//
// The program runs inside or not at all. If the parent dies, at any moment, the
// TUN goes with it and whoever lives on inside has no network.
//
// The program keeps its caller's world: file descriptors, environment,
// directory, terminal and process group are the very ones. Signals are passed on
// where the terminal has not done so already, and [ExitStatus.Exit] ends this
// process as the program ended.
//
// # The way out
//
// [Dialer] is the only maker of outgoing sockets in nasp-tun, so that there is
// one place to mark them. [Resolvers] follows the machine's resolv.conf.
package host
