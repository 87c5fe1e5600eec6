// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nasp-tun/nasp-tun/mesh"
	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
	"github.com/nasp-tun/nasp-tun/mesh/xds"
	"github.com/nasp-tun/nasp-tun/netstack"
)

func reasonTable(w io.Writer) {
	fmt.Fprint(w, "| reason | flag | meaning |\n| --- | --- | --- |\n")
	for _, r := range telemetry.Reasons() {
		fmt.Fprintf(w, "| `%s` | `%s` | %s |\n", r.Reason, r.Flag, r.Text)
	}
}

// described collects the descriptions of what is registered.
type described struct{ lines []string }

var descFields = regexp.MustCompile(`fqName: "([^"]*)", help: "((?:[^"\\]|\\.)*)", .*variableLabels: \{([^}]*)\}`)

func (d *described) Register(c prometheus.Collector) error {
	ch := make(chan *prometheus.Desc)
	go func() {
		c.Describe(ch)
		close(ch)
	}()
	for desc := range ch {
		if m := descFields.FindStringSubmatch(desc.String()); m != nil && strings.HasPrefix(m[1], "nasp_tun_") {
			labels := ""
			if m[3] != "" {
				labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
			}
			d.lines = append(d.lines, fmt.Sprintf("| `%s` | %s | %s |\n", m[1], labels, strings.ReplaceAll(m[2], `\"`, `"`)))
		}
	}
	return nil
}

func (d *described) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		_ = d.Register(c)
	}
}

func (d *described) Unregister(prometheus.Collector) bool { return false }

// metricTable lists our own metrics, as the parts of a session register them.
func metricTable(w io.Writer) {
	d := &described{}
	none := errors.New("not dialled")
	m, err := mesh.New(mesh.Config{
		Istiod: "127.0.0.1:15012", Node: xds.NodeConfig{Namespace: "n", ClusterID: "c"}, Registerer: d,
		Roots: func() ([]byte, error) { return nil, none },
		Token: func(context.Context) (string, error) { return "", none },
		Dial:  func(context.Context, string, string) (net.Conn, error) { return nil, none },
	})
	if err != nil {
		fmt.Fprintln(w, err)
		return
	}
	// A Run whose time is over lets go of the channel to istiod.
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.Run(over); err != nil {
		fmt.Fprintln(w, err)
	}
	_ = d.Register(&stackCollector{stats: func() netstack.Stats { return netstack.Stats{} }})
	slices.Sort(d.lines)
	fmt.Fprint(w, "| metric | labels | meaning |\n| --- | --- | --- |\n")
	for _, line := range slices.Compact(d.lines) {
		fmt.Fprint(w, line)
	}
}
