// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// servicesAnswer is the answer of services.
type servicesAnswer struct {
	versioned
	Services []serviceRow `json:"services"`
}

// A serviceRow is one service of the mesh as it is printed.
type serviceRow struct {
	Host      string        `json:"host"`
	Namespace string        `json:"namespace,omitempty"`
	Addresses []string      `json:"addresses"`
	Ports     []servicePort `json:"ports"`
}

type servicePort struct {
	Number   uint16 `json:"number"`
	Protocol string `json:"protocol"`
	MTLS     string `json:"mtls"`
	Healthy  int    `json:"healthy"`
	Total    int    `json:"total"`
}

func (a *app) servicesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "services [PATTERN]",
		Aliases: []string{"list"},
		Short:   "The services of the mesh: addresses, ports, mTLS, endpoints",
		Long: `Services lists what this session can reach by name. PATTERN is a part of a
name, or a shell pattern such as '*.prod'.`,
		GroupID: "look",
		Args:    cobra.MaximumNArgs(1),
	}
	return a.verb(cmd, func(cmd *cobra.Command, args []string) error {
		path := "/services"
		if len(args) > 0 {
			path += "?pattern=" + url.QueryEscape(args[0])
		}
		var answer servicesAnswer
		if err := a.ask(cmd.Context(), path, &answer); err != nil {
			return err
		}
		return a.print(&answer, func(w io.Writer) { writeServices(w, &answer) })
	}, clientFlags)
}

func writeServices(w io.Writer, answer *servicesAnswer) {
	t := newTable(w, "SERVICE", "ADDRESS", "PORT", "PROTOCOL", "MTLS", "ENDPOINTS")
	for _, s := range answer.Services {
		name, address := s.Host, orNone(strings.Join(s.Addresses, ","))
		if len(s.Ports) == 0 {
			t.row(name, address, "-", "-", "-", "-")
		}
		for _, p := range s.Ports {
			t.row(name, address, strconv.Itoa(int(p.Number)), p.Protocol, p.MTLS, fmt.Sprintf("%d/%d", p.Healthy, p.Total))
			name, address = "", ""
		}
	}
	t.flush()
}
