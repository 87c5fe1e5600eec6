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
// # A part of a whole host
//
// [OpenCapture] leads the addresses of a mesh, and ranges that the user names, into a
// TUN of the host; all else goes as it went. It owns three routing rules, one table and
// the protocol number 155, by which each rule and route of ours is known; nothing
// without that number is ever deleted.
//
//	any program's packet ─> 90: table 7777 ─> 10.96.0.10 dev nasp0            ─> the TUN
//	                                          unreachable 10.96.0.10, behind it: shows when the TUN is gone
//	our own, marked ──────> 89: goto 91 ────> the host's own rules and tables ─> uplink, VPN, …
//
// An address or range that somebody else owns on this host, by any table, is not taken:
// the address gets one of a virtual range instead ([Capture.Map], [Capture.Real]), with
// the owner's name in [Capture.Status].
//
// [OpenDNS] tells the host's resolver of our server: systemd-resolved for the domains
// that [Claims] chooses, or resolv.conf with the old servers behind ours.
//
// Most of this the kernel drops with the TUN, however the process ends. What would stay
// is in a journal ([OpenState]), synced before each change: [CleanUp] undoes it without
// a daemon, and the next start takes it up. In this order:
//
//	OpenState ─ OpenCapture ─ (netstack on Device) ─ Apply ─ OpenDNS ─ Claim ─ Prove, both ─ Watch, Run
//	DNS.Close ─ Capture.Close ─ State.Close                 undoes it; Leave in place of Close is a crash
//
// # The way out
//
// [Dialer] is the only maker of outgoing sockets in nasp-tun, so that there is
// one place to mark them. [Resolvers] follows the machine's resolv.conf.
package host
