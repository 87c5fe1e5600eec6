// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nasp-tun/nasp-tun/mesh"
)

// sessionStatus is the answer of status: the node's state, and that of the
// session around it.
type sessionStatus struct {
	versioned
	Session  string       `json:"session"`
	PID      int          `json:"pid"`
	Command  []string     `json:"command,omitempty"`
	Started  time.Time    `json:"started"`
	Version  string       `json:"version"`
	Mesh     mesh.Status  `json:"mesh"`
	DNS      dnsStatus    `json:"dns"`
	Flows    flowStatus   `json:"flows"`
	Device   deviceStatus `json:"device"`
	Warnings []string     `json:"warnings,omitempty"`
	Settings []Setting    `json:"settings"`
}

type dnsStatus struct {
	Resolver string   `json:"resolver"`
	Upstream []string `json:"upstream"`
	Search   []string `json:"search,omitempty"`
}

type flowStatus struct {
	TCP     int    `json:"tcp"`
	UDP     int    `json:"udp"`
	Refused uint64 `json:"refused"`
}

type deviceStatus struct {
	MTU     int  `json:"mtu"`
	Offload bool `json:"offload"` // superpackets, by the vnet header
}

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Identity and expiry, istiod, DNS, flows, what has no effect here",
		GroupID: "look",
		Args:    cobra.NoArgs,
	}
	return a.verb(cmd, func(cmd *cobra.Command, _ []string) error {
		var st sessionStatus
		if err := a.ask(cmd.Context(), "/status", &st); err != nil {
			return err
		}
		return a.print(&st, func(w io.Writer) { writeStatus(w, &st, time.Now()) })
	}, clientFlags)
}

func writeStatus(w io.Writer, st *sessionStatus, now time.Time) {
	t := newTable(w)
	t.row("session", fmt.Sprintf("%s (pid %d), up %s", st.Session, st.PID, age(now, st.Started)))
	if len(st.Command) > 0 {
		t.row("command", strings.Join(st.Command, " "))
	}
	m := &st.Mesh
	id := m.Identity.ID
	if id == "" {
		id = "none yet"
	}
	t.row("identity", id)
	if !m.Identity.NotAfter.IsZero() {
		t.row("certificate", fmt.Sprintf("ends in %s (%s)", age(m.Identity.NotAfter, now), m.Identity.NotAfter.Format(time.RFC3339)))
	}
	istiod := m.Istiod.Address + ", "
	if m.Istiod.Connected {
		istiod += "connected"
	} else {
		istiod += "away"
	}
	if !m.Istiod.LastUpdate.IsZero() {
		istiod += ", last update " + age(now, m.Istiod.LastUpdate) + " ago"
	}
	t.row("istiod", istiod)
	t.row("services", strconv.Itoa(m.Services))
	t.row("dns", fmt.Sprintf("%s, then %s; %d answered, %d forwarded, %d failed", st.DNS.Resolver,
		orNone(strings.Join(st.DNS.Upstream, ", ")), m.DNS.Answered, m.DNS.Forwarded, m.DNS.Failed))
	t.row("flows", fmt.Sprintf("%d TCP, %d UDP, %d refused", st.Flows.TCP, st.Flows.UDP, st.Flows.Refused))
	offload := "without offload"
	if st.Device.Offload {
		offload = "superpackets"
	}
	t.row("device", fmt.Sprintf("MTU %d, %s", st.Device.MTU, offload))
	for _, f := range slices.Sorted(maps.Keys(m.Ignored)) {
		t.row("no effect", fmt.Sprintf("%s (%d)", f, m.Ignored[f]))
	}
	for _, warning := range slices.Concat(st.Warnings, m.Warnings) {
		t.row("warning", warning)
	}
	t.flush()
}

// age prints the time from b to a, for people.
func age(a, b time.Time) string { return a.Sub(b).Round(time.Second).String() }

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
