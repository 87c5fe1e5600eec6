// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// A Config is what a [Client] needs.
type Config struct {
	// Conn is the channel to the control plane; the Client does not close it.
	// Its keepalive must be no faster than 15 s, or istiod sends it away.
	Conn grpc.ClientConnInterface
	// Node says who asks; see [NewNode].
	Node *corepb.Node
	// Types are subscribed to in this order. Default: [SidecarTypes].
	Types []Type
	Sink  Sink
	// Logger hears changes of state, not every attempt. Default: none.
	Logger *slog.Logger
}

// A Client keeps one stream to the control plane. Create it with [New].
type Client struct {
	// Set by New, then read-only.
	conn  grpc.ClientConnInterface
	node  *corepb.Node
	types []*subscription // the slice and the types; the state within has mu
	byURL map[string]*subscription
	sink  Sink
	log   *slog.Logger
	wake  chan struct{} // holds one token while there may be something to send

	mu        sync.Mutex // guards the following, and every subscription
	updating  bool       // Sink.Update runs: what it wants is sent after the ACK
	answers   []*discoverypb.DeltaDiscoveryRequest
	delivered bool // the current stream has answered
	since     time.Time
	lastErr   error
	lastErrAt time.Time
	streams   int
	nacks     int
	unknown   int // responses of a type never asked for

	// Owned by Run.
	backoff  backoff
	failures int        // attempts in a row
	said     codes.Code // of the failure that was logged last; OK: none since it worked
}

// New returns a Client. It starts nothing; see [Client.Run].
func New(cfg Config) (*Client, error) {
	if cfg.Conn == nil || cfg.Sink == nil {
		return nil, errors.New("xds: no connection or no sink")
	}
	if err := checkNode(cfg.Node); err != nil {
		return nil, err
	}
	types := cfg.Types
	if types == nil {
		types = SidecarTypes()
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		conn:  cfg.Conn,
		node:  cfg.Node,
		byURL: make(map[string]*subscription, len(types)),
		sink:  cfg.Sink,
		log:   log,
		wake:  make(chan struct{}, 1),
		since: time.Now(),
	}
	for _, t := range types {
		if t.URL == "" || c.byURL[t.URL] != nil {
			return nil, fmt.Errorf("xds: type %q is empty or given twice", t.URL)
		}
		s := newSubscription(t)
		c.types = append(c.types, s)
		c.byURL[t.URL] = s
	}
	return c, nil
}

// Run keeps the stream up until ctx is done, then returns nil. It must be
// called once.
func (c *Client) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		began := time.Now()
		err := c.stream(ctx)
		if ctx.Err() != nil {
			break
		}
		c.pause(ctx, c.ended(err, time.Since(began)))
	}
	return nil
}

// Watch replaces the set of names wanted of a type that is not a wildcard.
// It may be called at any time, also from Sink.Update. Names that are no
// longer wanted are unsubscribed from, and the server then says nothing more
// of them: forget them.
func (c *Client) Watch(typeURL string, names []string) {
	s := c.byURL[typeURL]
	if s == nil || s.Wildcard {
		c.log.Error("watch of a type that takes no names", "type", typeURL)
		return
	}
	c.mu.Lock()
	s.watch(names)
	c.mu.Unlock()
	c.signal()
}

// signal tells the sender to look for something to send.
func (c *Client) signal() {
	select {
	case c.wake <- struct{}{}:
	default: // it has been told already
	}
}

// ended judges a stream that ended, and returns the delay before the next.
func (c *Client) ended(err error, age time.Duration) time.Duration {
	c.mu.Lock()
	delivered := c.delivered
	if delivered {
		c.since = time.Now()
	}
	c.delivered = false
	c.lastErr, c.lastErrAt = err, time.Now()
	c.mu.Unlock()

	if c.backoff.steady(delivered, age) {
		c.backoff.reset()
		c.log.Debug("control plane stream ended, resuming", "age", age.Round(time.Second), "err", err)
		return 0
	}
	c.failures++
	// Said when it begins and when its nature changes, not at each attempt.
	if code := status.Code(err); code != c.said {
		c.said = code
		c.log.Warn("control plane away", "err", err, "attempts", c.failures)
	}
	return c.backoff.next()
}

// arrived notes the first response of a stream.
func (c *Client) arrived() {
	c.mu.Lock()
	c.delivered = true
	c.since = time.Now()
	c.streams++
	first := c.streams == 1
	c.mu.Unlock()
	if first || c.said != codes.OK {
		c.log.Info("control plane connected", "failed_attempts", c.failures)
	}
	c.failures, c.said = 0, codes.OK
}

// pause waits for d, or until the connection beneath, which retries by its
// own clock, becomes ready.
func (c *Client) pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	conn, ok := c.conn.(interface {
		GetState() connectivity.State
		WaitForStateChange(ctx context.Context, from connectivity.State) bool
	})
	if !ok {
		<-ctx.Done()
		return
	}
	for state := conn.GetState(); conn.WaitForStateChange(ctx, state); {
		if state = conn.GetState(); state == connectivity.Ready {
			return
		}
	}
}
