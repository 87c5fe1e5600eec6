// SPDX-License-Identifier: Apache-2.0

// Command echo is an ordinary server that knows nothing of a mesh: the pod
// behind a real sidecar in the lab, and in a cluster. It answers HTTP/1,
// HTTP/2 in clear and gRPC with what it has seen of the request, and returns
// the bytes of a TCP connection. It is the application of nasp-tun demo.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

const headerTimeout = 10 * time.Second

func main() {
	host, _ := os.Hostname()
	name := flag.String("name", host, "`NAME` that the answers give as host name")
	web := flag.Uint("http", 8080, "`PORT` for HTTP")
	rpc := flag.Uint("grpc", 8082, "`PORT` for gRPC")
	raw := flag.Uint("tcp", 9000, "`PORT` for bytes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, minimesh.NewApplication(*name), []uint{*web, *rpc}, *raw); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or a port fails.
func run(parent context.Context, app *minimesh.Application, web []uint, raw uint) error {
	ctx, cancel := context.WithCancelCause(parent)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	for _, port := range web {
		wg.Go(func() { cancel(serveHTTP(ctx, app, port)) })
	}
	wg.Go(func() { cancel(serveTCP(ctx, app, raw)) })
	<-ctx.Done()
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

func listen(port uint) (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) }

func serveHTTP(ctx context.Context, app *minimesh.Application, port uint) error {
	ln, err := listen(port)
	if err != nil {
		return err
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: app.Handler(uint16(port)), Protocols: protocols, ReadHeaderTimeout: headerTimeout}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	return s.Serve(ln)
}

func serveTCP(ctx context.Context, app *minimesh.Application, port uint) error {
	ln, err := listen(port)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			app.ServeTCP(c)
		})
	}
}
