// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	netnsDir    = "/run/netns" // where ip-netns(8) keeps the names
	netnsEtcDir = "/etc/netns"
)

// network makes the namespaces and joins them, as far as that is not done.
func (l *Lab) network(ctx context.Context) error {
	all := []string{Node, EchoV1, EchoV2, Gateway, Laptop}
	if slices.Equal(l.state.Namespaces, all) && !slices.ContainsFunc(all, func(n string) bool { return !exists(netnsDir + "/" + n) }) {
		return nil
	}
	if len(l.state.Namespaces) > 0 { // of an up that was broken off, or of before a reboot
		if err := l.Down(ctx); err != nil {
			return err
		}
	}
	for _, n := range all {
		if exists(netnsDir + "/" + n) {
			return fmt.Errorf("namespace %s is there and not of this lab: make lab-down in the checkout that made it, or ip netns del %s", n, n)
		}
	}
	if err := l.reset(); err != nil {
		return err
	}
	l.state.Namespaces = all
	if err := l.save(); err != nil {
		return err
	}
	l.say("network: %s", strings.Join(all, " "))
	var script []string
	for _, n := range all {
		script = append(script, "ip netns add "+n, "ip -n "+n+" link set lo up")
	}
	script = append(script,
		"ip -n "+Node+" link add br0 type bridge",
		"ip -n "+Node+" addr add "+NodeAddress+prefixLength+" dev br0",
		"ip -n "+Node+" link set br0 up")
	for i, p := range pods {
		port := fmt.Sprintf("v%d", i)
		script = append(script,
			"ip link add eth0 netns "+p.netns+" type veth peer name "+port+" netns "+Node,
			"ip -n "+Node+" link set "+port+" master br0 up",
			"ip -n "+p.netns+" addr add "+p.address+prefixLength+" dev eth0",
			"ip -n "+p.netns+" link set eth0 up",
			"ip -n "+p.netns+" route add default via "+NodeAddress)
	}
	// The laptop has no default route: nothing but the gateway's address is
	// in reach, and the gateway's namespace does not forward.
	script = append(script,
		"ip link add eth1 netns "+Gateway+" type veth peer name eth0 netns "+Laptop,
		"ip -n "+Gateway+" addr add "+GatewayAddress+prefixLength+" dev eth1",
		"ip -n "+Gateway+" link set eth1 up",
		"ip -n "+Laptop+" addr add "+LaptopAddress+prefixLength+" dev eth0",
		"ip -n "+Laptop+" link set eth0 up")
	for _, line := range script {
		if err := command(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	if err := captureInbound(ctx); err != nil {
		return err
	}
	return writeEtc()
}

// captureInbound does in each pod what istio-init does: what comes in goes to
// the sidecar, save what is the sidecar's own.
func captureInbound(ctx context.Context) error {
	for _, p := range pods {
		if p.gateway {
			continue
		}
		err := command(ctx, "ip", "netns", "exec", p.netns, "nft",
			"add table ip istio; add chain ip istio in { type nat hook prerouting priority dstnat; }; "+
				"add rule ip istio in tcp dport != { 15008, 15020, 15021, 15090 } redirect to :"+inboundPort)
		if err != nil {
			return err
		}
	}
	return nil
}

// writeEtc gives the namespaces the names and the resolver that a pod or a
// laptop would have. The laptop's resolver is an address (RFC 5737) to which
// it has no route, so that other names fail at once: the lab has no DNS, and
// no way to the machine's.
func writeEtc() error {
	files := map[string]string{filepath.Join(Laptop, "resolv.conf"): "nameserver 192.0.2.53\n"}
	for _, p := range pods {
		files[filepath.Join(p.netns, "hosts")] = "127.0.0.1 localhost\n" + NodeAddress + " istiod.istio-system.svc istiod-envoy.istio-system.svc\n"
	}
	for name, text := range files {
		name = filepath.Join(netnsEtcDir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeNetwork undoes network; what is not there any more is fine.
func (l *Lab) removeNetwork(ctx context.Context) error {
	var errs []error
	for _, n := range l.state.Namespaces {
		if exists(netnsDir + "/" + n) {
			errs = append(errs, command(ctx, "ip", "netns", "del", n))
		}
		errs = append(errs, os.RemoveAll(filepath.Join(netnsEtcDir, n)))
	}
	_ = os.Remove(netnsEtcDir) // if nobody else has anything in it
	return errors.Join(errs...)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// command runs a program to its end; its output is part of the error.
func command(ctx context.Context, args ...string) error {
	_, err := output(ctx, args...)
	return err
}

func output(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// DialIn returns a dial function whose sockets are of a namespace. It takes
// literal addresses only: a name would be looked up by another thread, which
// is in no such namespace.
func DialIn(netns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var c net.Conn
		err := inNamespace(netns, func() (err error) {
			var d net.Dialer //rule:allow a process of the lab, in a namespace of the lab
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

// inNamespace calls f on a thread that is in a network namespace.
func inNamespace(netns string, f func() error) error {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(netnsDir + "/" + netns)
	if err != nil {
		return fmt.Errorf("enter namespace %s: %w", netns, err)
	}
	defer there.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", netns, err)
	}
	err = f()
	// A thread that cannot be brought back stays locked, and ends with its
	// goroutine.
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return err
}
