// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nasp-tun/nasp-tun/mesh"
)

// explainAnswer is the answer of explain.
type explainAnswer struct {
	versioned
	*mesh.Explanation
}

func (a *app) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain HOST[:PORT][/PATH]",
		Short: "The way of a connection through the mesh's configuration",
		Long: `Explain walks a connection step by step, as the data path would: name, listener,
filter chain, route, cluster, endpoint, transport with its SNI and the
identities that it demands. Nothing is sent. The port is 80 unless given.

It exits with 50 when the connection would be refused.`,
		GroupID: "look",
		Args:    cobra.ExactArgs(1),
	}
	return a.verb(cmd, func(cmd *cobra.Command, args []string) error {
		if _, err := parseTarget(args[0]); err != nil {
			return err
		}
		answer := explainAnswer{Explanation: new(mesh.Explanation)}
		if err := a.ask(cmd.Context(), "/explain?target="+url.QueryEscape(args[0]), &answer); err != nil {
			return err
		}
		if err := a.print(&answer, func(w io.Writer) { writeExplanation(w, answer.Explanation) }); err != nil {
			return err
		}
		for _, step := range answer.Steps {
			if !step.OK {
				return exitCode(exitNotFound)
			}
		}
		return nil
	}, clientFlags)
}

func writeExplanation(w io.Writer, e *mesh.Explanation) {
	t := newTable(w)
	for _, s := range e.Steps {
		mark := "ok"
		if !s.OK {
			mark = "REFUSED"
		}
		t.row(s.Layer, mark, s.Choice, s.Detail)
	}
	t.flush()
	fmt.Fprintf(w, "%s: %s\n", printable(e.Target), printable(e.Verdict))
}

// A target is what explain is asked about.
type target struct {
	host string
	port uint16
	path string
}

// parseTarget reads HOST[:PORT][/PATH], also as a URL of http or https.
func parseTarget(s string) (target, error) {
	t := target{port: 80}
	rest := strings.TrimPrefix(s, "http://")
	if after, ok := strings.CutPrefix(rest, "https://"); ok {
		rest, t.port = after, 443
	}
	authority, path, hasPath := strings.Cut(rest, "/")
	if hasPath {
		t.path = "/" + path
	}
	t.host = authority
	if host, port, err := net.SplitHostPort(authority); err == nil {
		if t.port, err = parsePort(port); err != nil {
			return target{}, &usageError{err}
		}
		t.host = host
	}
	t.host = strings.Trim(t.host, "[]")
	if t.host == "" {
		return target{}, usagef("%q: must be HOST[:PORT][/PATH]", s)
	}
	return t, nil
}
