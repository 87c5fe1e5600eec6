// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The gRPC echo takes and returns google.protobuf.StringValue, so that it
// needs no generated code: Say is unary, Chat is a stream both ways.
const (
	echoService = "nasptun.demo.Echo"
	echoSay     = "/" + echoService + "/Say"
	echoChat    = "/" + echoService + "/Chat"
)

// An echoServer answers with what it heard, who it is and who called.
type echoServer struct{ name string }

func (s *echoServer) answer(ctx context.Context, text string) *wrapperspb.StringValue {
	md, _ := metadata.FromIncomingContext(ctx)
	return wrapperspb.String(fmt.Sprintf("Hostname: %s\nmessage=%s\nx-forwarded-client-cert=%s\n",
		s.name, text, first(md, "x-forwarded-client-cert")))
}

func (s *echoServer) say(ctx context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
	return s.answer(ctx, in.GetValue()), nil
}

func (s *echoServer) chat(st grpc.ServerStream) error {
	for {
		var in wrapperspb.StringValue
		if err := st.RecvMsg(&in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := st.SendMsg(s.answer(st.Context(), in.GetValue())); err != nil {
			return err
		}
	}
}

// echoDesc is what a generator would write.
var echoDesc = grpc.ServiceDesc{
	ServiceName: echoService,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Say",
		Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.StringValue
			if err := dec(&in); err != nil {
				return nil, err
			}
			return srv.(*echoServer).say(ctx, &in)
		},
	}},
	Streams: []grpc.StreamDesc{chatDesc},
}

var chatDesc = grpc.StreamDesc{
	StreamName: "Chat",
	Handler: func(srv any, st grpc.ServerStream) error {
		return srv.(*echoServer).chat(st)
	},
	ServerStreams: true,
	ClientStreams: true,
}

// grpcEcho makes the gRPC application of a workload: the echo and the
// standard health service.
func (w *workload) grpcEcho() *grpc.Server {
	s := grpc.NewServer()
	s.RegisterService(&echoDesc, &echoServer{name: w.name})
	healthpb.RegisterHealthServer(s, health.NewServer())
	return s
}

// Say calls the echo once.
func Say(ctx context.Context, conn grpc.ClientConnInterface, text string) (string, error) {
	var out wrapperspb.StringValue
	if err := conn.Invoke(ctx, echoSay, wrapperspb.String(text), &out); err != nil {
		return "", fmt.Errorf("call echo: %w", err)
	}
	return out.GetValue(), nil
}

// A ChatStream is an open conversation with the echo.
type ChatStream struct{ st grpc.ClientStream }

// Chat opens a conversation; it ends with ctx or by [ChatStream.End].
func Chat(ctx context.Context, conn grpc.ClientConnInterface) (*ChatStream, error) {
	st, err := conn.NewStream(ctx, &chatDesc, echoChat)
	if err != nil {
		return nil, fmt.Errorf("open chat: %w", err)
	}
	return &ChatStream{st: st}, nil
}

// Say sends one message and waits for its echo.
func (c *ChatStream) Say(text string) (string, error) {
	if err := c.st.SendMsg(wrapperspb.String(text)); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	var out wrapperspb.StringValue
	if err := c.st.RecvMsg(&out); err != nil {
		return "", fmt.Errorf("receive: %w", err)
	}
	return out.GetValue(), nil
}

// End closes this side and waits for the other's end.
func (c *ChatStream) End() error {
	if err := c.st.CloseSend(); err != nil {
		return fmt.Errorf("end chat: %w", err)
	}
	var out wrapperspb.StringValue
	if err := c.st.RecvMsg(&out); !errors.Is(err, io.EOF) {
		return fmt.Errorf("end chat: %w", err)
	}
	return nil
}
