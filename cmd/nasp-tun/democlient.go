// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// demoClientVerb names the programs that demo runs inside beside curl, since
// not every machine has one for raw TCP and for gRPC. They are as ordinary as
// curl: they look a name up, connect, and know nothing of a mesh.
const demoClientVerb = "__demo-client"

const (
	demoClientTimeout = 10 * time.Second
	demoLines         = 3
)

func (a *app) demoClientCommand() *cobra.Command {
	return &cobra.Command{
		Use:    demoClientVerb + " tcp|grpc HOST:PORT",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoClientTimeout)
			defer cancel()
			switch args[0] {
			case "tcp":
				return demoTCP(ctx, a.stdout, args[1])
			case "grpc":
				return demoGRPC(ctx, a.stdout, args[1])
			}
			return usagef("unknown protocol %q", args[0])
		},
	}
}

// demoTCP sends lines and prints what comes back.
func demoTCP(ctx context.Context, w io.Writer, address string) error {
	var d net.Dialer //rule:allow an ordinary program inside the tunnel
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	answers := bufio.NewReader(c)
	for i := range demoLines {
		if _, err := fmt.Fprintf(c, "name %d\n", i); err != nil {
			return err
		}
		answer, err := answers.ReadString('\n')
		if err != nil {
			return fmt.Errorf("read from %s: %w", address, err)
		}
		fmt.Fprintf(w, "request: name %d, response: %s", i, answer)
	}
	return nil
}

// demoGRPC makes one call and prints the answer.
func demoGRPC(ctx context.Context, w io.Writer, address string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := minimesh.Say(ctx, conn, "hello")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, strings.TrimSpace(answer))
	return nil
}
