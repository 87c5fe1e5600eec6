// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

const (
	// maxResponse bounds one message of the server, as ztunnel does: istiod
	// puts all resources of a type into one, and a large mesh's clusters are
	// tens of megabytes.
	maxResponse = 200 << 20
	// maxErrorDetail bounds the text of a NACK; istiod logs it whole.
	maxErrorDetail = 4 << 10
)

var errNoBody = errors.New("resource without a body")

type adsStream = grpc.BidiStreamingClient[discoverypb.DeltaDiscoveryRequest, discoverypb.DeltaDiscoveryResponse]

// stream opens one stream and serves it until it ends.
func (c *Client) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := discoverypb.NewAggregatedDiscoveryServiceClient(c.conn).
		DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(maxResponse))
	if err != nil {
		return fmt.Errorf("open ads stream: %w", err)
	}
	c.restart()

	var sender sync.WaitGroup
	var sendErr error
	sender.Go(func() {
		defer cancel()
		sendErr = c.send(ctx, s)
	})
	err = c.receive(s)
	cancel()
	sender.Wait()
	if sendErr != nil {
		return sendErr
	}
	return err
}

// restart forgets what belonged to the stream before.
func (c *Client) restart() {
	c.mu.Lock()
	c.answers = nil
	for _, s := range c.types {
		s.restart()
	}
	c.mu.Unlock()
	c.signal()
}

// send sends what there is to send, in order, until the stream ends. It
// returns nil if the receiver knows better why.
func (c *Client) send(ctx context.Context, s adsStream) error {
	node := c.node // goes with the first request only
	for {
		for r := c.next(); r != nil; r = c.next() {
			r.Node, node = node, nil
			switch err := s.Send(r); {
			case errors.Is(err, io.EOF): // the stream ended, and Recv has the reason
				return nil
			case err != nil:
				return fmt.Errorf("send request for %s: %w", r.GetTypeUrl(), err)
			}
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// next returns the next message to send: answers first, so that the server
// never waits for them, then changes of subscription in the order of types.
func (c *Client) next() *discoverypb.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers) > 0 {
		r := c.answers[0]
		c.answers = c.answers[1:]
		return r
	}
	if c.updating {
		return nil
	}
	for _, s := range c.types {
		if r := s.next(); r != nil {
			return r
		}
	}
	return nil
}

// receive hands responses to the Sink until the stream ends.
func (c *Client) receive(s adsStream) error {
	for first := true; ; first = false {
		r, err := s.Recv()
		if err != nil {
			return fmt.Errorf("ads stream: %w", err)
		}
		if first {
			c.arrived()
		}
		c.handle(r)
	}
}

// handle has one response applied, and answers it.
func (c *Client) handle(r *discoverypb.DeltaDiscoveryResponse) {
	c.mu.Lock()
	s := c.byURL[r.GetTypeUrl()]
	if s == nil {
		c.unknown++
		c.mu.Unlock()
		c.log.Debug("response of a type not asked for", "type", r.GetTypeUrl())
		return
	}
	resp, rejected := decode(r)
	resp.Removed = append(resp.Removed, s.missing(r)...)
	c.updating = true
	c.mu.Unlock()

	rejected = append(rejected, c.sink.Update(resp)...)

	c.mu.Lock()
	bad := make(map[string]string, len(rejected))
	for _, b := range rejected {
		bad[b.Name] = b.Err.Error()
	}
	news := s.applied(resp, bad)
	c.answers = append(c.answers, answer(r, rejected))
	if len(rejected) > 0 {
		c.nacks++
	}
	c.updating = false
	c.mu.Unlock()
	c.signal()

	if len(news) > 0 {
		c.log.Warn("resources rejected, the last good version is kept", "type", r.GetTypeUrl(),
			"count", len(news), "name", news[0], "err", bad[news[0]])
	}
}

// decode takes a response apart. A resource without a body is rejected here.
func decode(r *discoverypb.DeltaDiscoveryResponse) (Response, []Rejected) {
	resp := Response{
		TypeURL:   r.GetTypeUrl(),
		Resources: make([]Resource, 0, len(r.GetResources())),
		Removed:   append([]string(nil), r.GetRemovedResources()...),
		Nonce:     r.GetNonce(),
		Version:   r.GetSystemVersionInfo(),
	}
	var rejected []Rejected
	for _, res := range r.GetResources() {
		if res.GetResource() == nil {
			rejected = append(rejected, Rejected{Name: res.GetName(), Err: errNoBody})
			continue
		}
		resp.Resources = append(resp.Resources, Resource{
			Name: res.GetName(), Version: res.GetVersion(), Body: res.GetResource(),
		})
	}
	return resp, rejected
}

// answer returns the ACK of r, or the NACK that names what was rejected.
func answer(r *discoverypb.DeltaDiscoveryResponse, rejected []Rejected) *discoverypb.DeltaDiscoveryRequest {
	a := &discoverypb.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if len(rejected) == 0 {
		return a
	}
	var text strings.Builder
	for i, b := range rejected {
		line := fmt.Sprintf("%q: %v", b.Name, b.Err)
		if text.Len()+len(line) > maxErrorDetail {
			fmt.Fprintf(&text, "; and %d more", len(rejected)-i)
			break
		}
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(line)
	}
	a.ErrorDetail = &statuspb.Status{
		Code:    int32(codes.InvalidArgument),
		Message: strings.ToValidUTF8(text.String(), "\uFFFD"),
	}
	return a
}
