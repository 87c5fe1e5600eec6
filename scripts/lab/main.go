// SPDX-License-Identifier: Apache-2.0

// Command lab starts and ends a real Istio on this machine; see package
// cluster for what it consists of.
//
//	lab up       build and start what is not running, and say how to use it
//	lab down     end and remove all that up made
//	lab status   what runs; exit code 1 unless all does
//	lab build    only fill the cache
//	lab token NAMESPACE ACCOUNT [AUDIENCE]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

const usage = "usage: lab up|down|status|build|token NAMESPACE ACCOUNT [AUDIENCE]"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	lab, err := cluster.Open(os.Stdout)
	if err != nil {
		return err
	}
	switch args[0] {
	case "up":
		return locked(lab, func() error {
			if err := lab.Up(ctx); err != nil {
				return err
			}
			fmt.Print(lab.Usage())
			return nil
		})
	case "down":
		return locked(lab, func() error { return lab.Down(ctx) })
	case "build":
		return locked(lab, func() error { return lab.Build(ctx) })
	case "status":
		text, up := lab.Status(ctx)
		fmt.Print(text)
		if !up {
			return errors.New("not all of the lab is up")
		}
		return nil
	case "token":
		return token(ctx, lab, args[1:])
	}
	return errors.New(usage)
}

func locked(lab *cluster.Lab, f func() error) error {
	if err := lab.Lock(); err != nil {
		return err
	}
	defer lab.Unlock()
	return f()
}

func token(ctx context.Context, lab *cluster.Lab, args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errors.New(usage)
	}
	audience := "istio-ca"
	if len(args) == 3 {
		audience = args[2]
	}
	api, err := lab.API()
	if err != nil {
		return err
	}
	text, err := api.Token(ctx, args[0], args[1], audience, time.Hour)
	if err != nil {
		return err
	}
	fmt.Println(text)
	return nil
}
