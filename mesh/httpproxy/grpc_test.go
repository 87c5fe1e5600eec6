// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/nasp-tun/nasp-tun/mesh/httpproxy"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

func withHints(ctx context.Context, hints chan<- string) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints <- fmt.Sprint(code, " ", h.Get("Link"))
		return nil
	}})
}

type str = wrapperspb.StringValue

// echoService is a gRPC service without generated code.
var echoService = grpc.ServiceDesc{
	ServiceName: "test.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Say",
		Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(str)
			if err := dec(in); err != nil {
				return nil, err
			}
			if in.Value == "fail" {
				return nil, status.Error(codes.NotFound, "no such thing: ü")
			}
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-tail", "t"))
			return wrapperspb.String("said " + in.Value), nil
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName: "Chat", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error {
			for {
				in := new(str)
				if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
					return status.Error(codes.Aborted, "enough")
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(wrapperspb.String("heard " + in.Value)); err != nil {
					return err
				}
			}
		},
	}},
}

// grpcServe serves gRPC with mutual TLS at an endpoint.
func (e *env) grpcServe(addr string) {
	e.t.Helper()
	srv := grpc.NewServer()
	srv.RegisterService(&echoService, nil)
	var wg sync.WaitGroup
	l := tls.NewListener(e.net.Listen(addr), e.ca.Server(echoID, "h2"))
	wg.Go(func() { _ = srv.Serve(l) })
	e.t.Cleanup(func() { srv.Stop(); wg.Wait() })
}

// grpcClient returns a gRPC client that goes through the proxy.
func (e *env) grpcClient() *grpc.ClientConn {
	e.t.Helper()
	cc, err := grpc.NewClient("passthrough:///echo.testing", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			near, _ := e.serveWith(httpproxy.Downstream{Manager: e.manager, Dst: e.dst})
			return near, nil
		}))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func TestGRPC(t *testing.T) {
	e := newEnv(t)
	e.cluster.HTTP = resource.HTTP2
	e.route.Action.Retry = istiodRetry()
	e.grpcServe(hostA)
	e.start()
	cc := e.grpcClient()
	out := new(str)
	var tail metadata.MD
	if err := cc.Invoke(t.Context(), "/test.Echo/Say", wrapperspb.String("hi"), out, grpc.Trailer(&tail)); err != nil || out.Value != "said hi" {
		t.Errorf("%v, %v", out, err)
	}
	if got := tail.Get("x-tail"); len(got) != 1 || got[0] != "t" {
		t.Errorf("trailers %v", tail)
	}
	big := strings.Repeat("x", 2<<20)
	if err := cc.Invoke(t.Context(), "/test.Echo/Say", wrapperspb.String(big), out); err != nil || len(out.Value) != len(big)+5 {
		t.Errorf("a large message: %d bytes, %v", len(out.Value), err)
	}
	err := cc.Invoke(t.Context(), "/test.Echo/Say", wrapperspb.String("fail"), out)
	if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != "no such thing: ü" {
		t.Errorf("%v", err)
	}
	if s := status.Convert(cc.Invoke(t.Context(), "/test.Echo/None", out, out)); s.Code() != codes.Unimplemented {
		t.Errorf("%v", s)
	}

	stream, err := cc.NewStream(t.Context(), &echoService.Streams[0], "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(out); err != nil || out.Value != fmt.Sprint("heard ", i) {
			t.Fatalf("%v, %v", out, err)
		}
	}
	_ = stream.CloseSend()
	if s := status.Convert(stream.RecvMsg(out)); s.Code() != codes.Aborted || s.Message() != "enough" {
		t.Errorf("the end of the stream: %v", s)
	}
	_ = cc.Close()
	want := []string{"0", "0", "5", "12", "10"}
	records := e.records()
	for i, r := range records {
		if i < len(want) && (r["grpc_status"] != want[i] || r["protocol"] != "grpc") {
			t.Errorf("record %d: %v, want status %s", i, r, want[i])
		}
	}
	if len(records) != len(want) {
		t.Errorf("%d records", len(records))
	}
}

// What goes wrong before a service answers is UNAVAILABLE, with the reason.
func TestGRPCFailure(t *testing.T) {
	e := newEnv(t)
	e.cluster.HTTP = resource.HTTP2
	e.endpoints()
	e.start()
	err := e.grpcClient().Invoke(t.Context(), "/test.Echo/Say", wrapperspb.String("hi"), new(str))
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), echoName) {
		t.Errorf("%v", err)
	}
}

// A client that goes away ends its stream at the service.
func TestGRPCCancel(t *testing.T) {
	e := newEnv(t)
	e.cluster.HTTP = resource.HTTP2
	ended := make(chan error, 1)
	desc := echoService
	desc.Streams = []grpc.StreamDesc{{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		_ = s.SendMsg(wrapperspb.String("here"))
		<-s.Context().Done()
		ended <- s.Context().Err()
		return nil
	}}}
	srv := grpc.NewServer()
	srv.RegisterService(&desc, nil)
	var wg sync.WaitGroup
	l := tls.NewListener(e.net.Listen(hostA), e.ca.Server(echoID, "h2"))
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	e.start()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := e.grpcClient().NewStream(ctx, &desc.Streams[0], "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new(str)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
