// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	clientAddress = "10.77.0.1"
	serverAddress = "10.77.0.2"
	iperfPort     = 5201
	serverPort    = 15443 // of the Envoy server
	sidecarPort   = 15001
	sidecarUser   = 1337 // as Istio's
	service       = "iperf.bench"
	// clockTick is USER_HZ, the unit of /proc/PID/stat; it is 100 on every
	// architecture that Go runs on.
	clockTick = 100
	// startLimit bounds the wait for a process to listen.
	startLimit = 20 * time.Second
)

// hosts are the two namespaces.
type hosts struct{ cli, srv string }

func newHosts(ctx context.Context) (*hosts, error) {
	id := strconv.Itoa(os.Getpid())
	h := &hosts{cli: "nb-cli-" + id, srv: "nb-srv-" + id}
	for _, args := range [][]string{
		{"ip", "netns", "add", h.cli},
		{"ip", "netns", "add", h.srv},
		{"ip", "-n", h.cli, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", h.srv},
		{"ip", "-n", h.cli, "addr", "add", clientAddress + "/24", "dev", "eth0"},
		{"ip", "-n", h.srv, "addr", "add", serverAddress + "/24", "dev", "eth0"},
		{"ip", "-n", h.cli, "link", "set", "eth0", "up"},
		{"ip", "-n", h.srv, "link", "set", "eth0", "up"},
		{"ip", "-n", h.cli, "link", "set", "lo", "up"},
		{"ip", "-n", h.srv, "link", "set", "lo", "up"},
		{"ip", "netns", "exec", h.cli, "nft", "add table ip nat; add chain ip nat out { type nat hook output priority -100; }; " +
			fmt.Sprintf("add rule ip nat out meta skuid != %d tcp dport %d redirect to :%d", sidecarUser, iperfPort, sidecarPort)},
	} {
		if _, err := command(ctx, args...); err != nil {
			h.close()
			return nil, err
		}
	}
	return h, nil
}

// close removes the namespaces, also after ctx has ended.
func (h *hosts) close() {
	for _, ns := range []string{h.cli, h.srv} {
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
}

// processes are the parts that run during all rounds.
type processes struct {
	all     []*exec.Cmd
	sidecar int // pid
	tunnel  int // pid of nasp-tun
	inside  int // pid of the program that it keeps in its namespace
}

func (p *processes) stop() {
	for i := len(p.all) - 1; i >= 0; i-- {
		_ = p.all[i].Process.Signal(syscall.SIGTERM)
	}
	for _, c := range p.all {
		_ = c.Wait()
	}
}

// spawn starts a program in a namespace; its output goes to a file, which is
// part of the error if it does not come up.
func (p *processes) spawn(ctx context.Context, log, ns string, args ...string) (*exec.Cmd, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.all = append(p.all, cmd)
	return cmd, nil
}

func (h *hosts) start(ctx context.Context, dir, bin, envoy string) (*processes, error) {
	p := &processes{}
	self, err := os.Executable()
	if err != nil {
		return p, err
	}
	if _, err := p.spawn(ctx, filepath.Join(dir, "mesh.log"), h.cli, self, "-serve-mesh", dir); err != nil {
		return p, err
	}
	flags, err := waitFile(ctx, filepath.Join(dir, "flags"))
	if err != nil {
		return p, err
	}
	if _, err := p.spawn(ctx, filepath.Join(dir, "iperf.log"), h.srv, "iperf3", "-s", "-p", strconv.Itoa(iperfPort)); err != nil {
		return p, err
	}
	if err := writeEnvoys(dir); err != nil {
		return p, err
	}
	if _, err := p.spawn(ctx, filepath.Join(dir, "server.log"), h.srv,
		envoy, "-c", filepath.Join(dir, "server.yaml"), "--base-id", "1", "--use-dynamic-base-id", "--concurrency", "2", "-l", "warn"); err != nil {
		return p, err
	}
	sidecar, err := p.spawn(ctx, filepath.Join(dir, "sidecar.log"), h.cli, "setpriv", "--reuid", strconv.Itoa(sidecarUser), "--clear-groups", "--",
		envoy, "-c", filepath.Join(dir, "sidecar.yaml"), "--use-dynamic-base-id", "--concurrency", "2", "-l", "warn")
	if err != nil {
		return p, err
	}
	args := append([]string{bin, "exec", "--name", "bench"}, strings.Split(strings.TrimSpace(flags), "\n")...)
	args = append(args, "--", "sleep", "infinity")
	tunnel, err := p.spawn(ctx, filepath.Join(dir, "tunnel.log"), h.cli, args...)
	if err != nil {
		return p, err
	}
	p.tunnel = tunnel.Process.Pid
	if p.inside, err = waitChild(ctx, p.tunnel, "sleep", filepath.Join(dir, "tunnel.log")); err != nil {
		return p, err
	}
	if err := h.waitPort(ctx, h.srv, serverPort, filepath.Join(dir, "server.log")); err != nil {
		return p, err
	}
	if err := h.waitPort(ctx, h.cli, sidecarPort, filepath.Join(dir, "sidecar.log")); err != nil {
		return p, err
	}
	p.sidecar, err = envoyPID(sidecar.Process.Pid)
	return p, err
}

// envoyPID finds the Envoy itself: the PyPI package starts it by a wrapper
// that may stay its parent.
func envoyPID(pid int) (int, error) {
	for range 8 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return 0, err
		}
		children := strings.Fields(string(b))
		if len(children) == 0 {
			return pid, nil
		}
		if pid, err = strconv.Atoi(children[0]); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("envoy: too many wrappers")
}

// poll calls f every now and then until it is content or the limit is over.
func poll(ctx context.Context, what string, f func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
	return nil
}

func waitFile(ctx context.Context, name string) (string, error) {
	var b []byte
	err := poll(ctx, name, func() bool {
		var err error
		b, err = os.ReadFile(name)
		return err == nil && len(b) > 0
	})
	return string(b), err
}

// waitChild waits until pid has a child that runs the named program.
func waitChild(ctx context.Context, pid int, name, log string) (int, error) {
	var found int
	err := poll(ctx, name+" in the tunnel", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, t := range tasks {
			b, _ := os.ReadFile(t)
			for _, c := range strings.Fields(string(b)) {
				if comm, _ := os.ReadFile("/proc/" + c + "/comm"); strings.TrimSpace(string(comm)) == name {
					found, _ = strconv.Atoi(c)
					return true
				}
			}
		}
		return false
	})
	if err != nil {
		text, _ := os.ReadFile(log)
		err = fmt.Errorf("%w\n%s", err, text)
	}
	return found, err
}

func (h *hosts) waitPort(ctx context.Context, ns string, port int, log string) error {
	err := poll(ctx, fmt.Sprintf("port %d", port), func() bool {
		out, err := command(ctx, "ip", "netns", "exec", ns, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port))
		return err == nil && strings.TrimSpace(out) != ""
	})
	if err != nil {
		text, _ := os.ReadFile(log)
		err = fmt.Errorf("%w\n%s", err, text)
	}
	return err
}

func (h *hosts) viaEnvoy(ctx context.Context, p *processes, streams int, way string, seconds int) (sample, error) {
	prefix := []string{"ip", "netns", "exec", h.cli}
	s, _, err := iperf(ctx, p.sidecar, prefix, serverAddress, streams, way, seconds)
	return s, err
}

func (h *hosts) viaTunnel(ctx context.Context, p *processes, streams int, way string, seconds int) (sample, error) {
	prefix := []string{"nsenter", "-t", strconv.Itoa(p.inside), "-n", "-m", "--"}
	before, err := tunCounters(ctx, prefix)
	if err != nil {
		return sample{}, err
	}
	s, _, err := iperf(ctx, p.tunnel, prefix, service, streams, way, seconds)
	if err != nil {
		return s, err
	}
	after, err := tunCounters(ctx, prefix)
	if err != nil {
		return s, err
	}
	i := 0 // received by the program
	if way == "up" {
		i = 1
	}
	if n := after[i].packets - before[i].packets; n > 0 {
		s.packetKB = float64(after[i].bytes-before[i].bytes) / float64(n) / 1e3
	}
	return s, nil
}

// iperf measures one transfer and the CPU time that the proxy took for it.
func iperf(ctx context.Context, proxy int, prefix []string, host string, streams int, way string, seconds int) (sample, int64, error) {
	var err error
	args := append(prefix[:len(prefix):len(prefix)], "iperf3", "-c", host, "-p", strconv.Itoa(iperfPort),
		"-t", strconv.Itoa(seconds), "-P", strconv.Itoa(streams), "-J")
	if way == "down" {
		args = append(args, "-R")
	}
	var r report
	var before time.Duration
	// The server ends a test a moment after its client, and refuses the next
	// one until then.
	if err := poll(ctx, "iperf3", func() bool {
		if before, err = cpu(proxy); err != nil {
			return true
		}
		r, err = runIperf(ctx, args)
		return !strings.Contains(r.Error, "busy")
	}); err != nil {
		return sample{}, 0, err
	}
	if err != nil {
		return sample{}, 0, err
	}
	after, err := cpu(proxy)
	if err != nil {
		return sample{}, 0, err
	}
	if r.Error != "" || r.End.Received.Bytes == 0 {
		return sample{}, 0, fmt.Errorf("iperf3: %q, %d bytes", r.Error, r.End.Received.Bytes)
	}
	n := r.End.Received.Bytes
	return sample{gbits: r.End.Received.Bits / 1e9, cpuPerGB: (after - before).Seconds() / (float64(n) / 1e9)}, n, nil
}

// A report is the part of iperf3's JSON that counts.
type report struct {
	Error string
	End   struct {
		Received struct {
			Bytes int64   `json:"bytes"`
			Bits  float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

// runIperf runs iperf3, whose errors are in its JSON.
func runIperf(ctx context.Context, args []string) (report, error) {
	var r report
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		return r, errors.Join(err, jsonErr)
	}
	return r, nil
}

// cpu returns the user and system time of a process.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The fields after the command, which is in parentheses, begin with the
	// state, the third; utime and stime are the 14th and 15th (proc(5)).
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	utime, err1 := strconv.ParseInt(f[11], 10, 64)
	stime, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(utime+stime) * time.Second / clockTick, errors.Join(err1, err2)
}

type counter struct{ bytes, packets int64 }

// tunCounters reads what the program's side of the TUN received and sent.
func tunCounters(ctx context.Context, prefix []string) ([2]counter, error) {
	var c [2]counter
	out, err := command(ctx, append(prefix[:len(prefix):len(prefix)], "cat", "/proc/net/dev")...)
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(out) {
		name, rest, ok := strings.Cut(line, ":")
		if !ok || !strings.HasPrefix(strings.TrimSpace(name), "nasp") {
			continue
		}
		f := strings.Fields(rest)
		for i, v := range []*int64{&c[0].bytes, &c[0].packets, &c[1].bytes, &c[1].packets} {
			field := i
			if i >= 2 {
				field += 6 // sent bytes and packets are the 9th and 10th
			}
			if *v, err = strconv.ParseInt(f[field], 10, 64); err != nil {
				return c, err
			}
		}
		return c, nil
	}
	return c, errors.New("no TUN device in the namespace")
}
