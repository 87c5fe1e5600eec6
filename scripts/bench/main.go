// SPDX-License-Identifier: Apache-2.0

// Command bench compares nasp-tun with an Envoy sidecar on this machine.
//
// Two network namespaces stand for two hosts:
//
//	cli                                            srv
//	iperf3 ─ nft redirect ─> Envoy sidecar ─ mTLS ─┐
//	                                               ├─ veth ─> Envoy server ─> iperf3
//	iperf3 ─ TUN ──────────> nasp-tun exec ─ mTLS ─┘
//
// Both ways end in the same Envoy server, which demands a client certificate
// of the same mesh. The two are measured one after the other in every round,
// since the machine is never quiet: only the ratio of one run means anything.
//
// It must be root, and needs iperf3, nft and Envoy (ENVOY_BIN).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	rounds := flag.Int("rounds", 5, "rounds, each with both proxies")
	seconds := flag.Int("seconds", 4, "seconds of each measurement")
	bin := flag.String("bin", "bin/nasp-tun", "the nasp-tun to measure")
	serve := flag.String("serve-mesh", "", "internal: be the control plane and write its files into this folder")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serve != "" {
		err = serveMesh(ctx, *serve)
	} else {
		err = run(ctx, *bin, *rounds, *seconds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, rounds, seconds int) error {
	envoy := os.Getenv("ENVOY_BIN")
	if envoy == "" {
		return errors.New("ENVOY_BIN does not name an Envoy")
	}
	dir, err := os.MkdirTemp("", "nasp-tun-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The sidecar runs as another user, so that its own traffic is told apart.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	h, err := newHosts(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	p, err := h.start(ctx, dir, bin, envoy)
	defer p.stop()
	if err != nil {
		return err
	}
	return measure(ctx, h, p, rounds, seconds)
}

// measure runs the rounds and prints the table.
func measure(ctx context.Context, h *hosts, p *processes, rounds, seconds int) error {
	fmt.Printf("%d rounds of %d s, Envoy and nasp-tun in turn; median (min-max)\n\n", rounds, seconds)
	fmt.Println("| streams | way | Envoy Gbit/s | nasp-tun Gbit/s | ratio | Envoy CPU s/GB | nasp-tun CPU s/GB | mean TUN packet KB |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, streams := range []int{1, 4} {
		for _, way := range []string{"up", "down"} {
			var peer, ours []sample
			for range rounds {
				a, err := h.viaEnvoy(ctx, p, streams, way, seconds)
				if err != nil {
					return fmt.Errorf("through Envoy, %d streams %s: %w", streams, way, err)
				}
				b, err := h.viaTunnel(ctx, p, streams, way, seconds)
				if err != nil {
					return fmt.Errorf("through nasp-tun, %d streams %s: %w", streams, way, err)
				}
				peer, ours = append(peer, a), append(ours, b)
			}
			gbits := func(s sample) float64 { return s.gbits }
			cpu := func(s sample) float64 { return s.cpuPerGB }
			ratios := make([]sample, rounds)
			for i := range ratios {
				ratios[i].gbits = ours[i].gbits / peer[i].gbits
			}
			fmt.Printf("| %d | %s | %s | %s | %s | %.2f | %.2f | %.1f |\n", streams, way,
				spread(peer, gbits), spread(ours, gbits), spread(ratios, gbits),
				median(peer, cpu), median(ours, cpu), median(ours, func(s sample) float64 { return s.packetKB }))
		}
	}
	return nil
}

// A sample is one measurement.
type sample struct {
	gbits    float64 // received
	cpuPerGB float64 // seconds of the proxy
	packetKB float64 // mean packet of the TUN in the direction of the data
}

func median(all []sample, f func(sample) float64) float64 {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = f(s)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func spread(all []sample, f func(sample) float64) string {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = f(s)
	}
	slices.Sort(v)
	return fmt.Sprintf("%.2f (%.2f-%.2f)", v[len(v)/2], v[0], v[len(v)-1])
}

// command runs a program to its end and returns what it printed.
func command(ctx context.Context, args ...string) (string, error) {
	var errOut strings.Builder
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(args, " "), err, errOut.String(), out)
	}
	return string(out), nil
}
