// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/balance"
	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

const (
	// Envoy's back-off: at random up to the interval, which doubles from the
	// base up to ten times it.
	defaultBackoff   = 25 * time.Millisecond
	backoffGrowth    = 2
	defaultBackoffUp = 10
)

// A series is the attempts of one exchange.
type series struct {
	x         *exchange
	policy    resource.RetryPolicy // zero: none
	left      uint32
	interval  time.Duration
	most      time.Duration
	previous  []*balance.Host
	replays   int
	fresh     bool // the next connection must not come out of a pool
	exhausted bool
}

func (s *series) init(x *exchange) {
	s.x = x
	if p := x.action.Retry; p != nil {
		s.policy, s.left = *p, p.Max
	}
	s.interval = s.policy.BackoffBase
	if s.interval == 0 {
		s.interval = defaultBackoff
	}
	s.most = s.policy.BackoffMax
	if s.most == 0 {
		s.most = s.interval * defaultBackoffUp
	}
	if s.left > 0 {
		x.src.remember()
	}
}

// again decides about one more attempt after one that met the conditions on.
// If there is one, the caller gives the last attempt up and calls pause.
func (s *series) again(on resource.RetryOn) bool {
	if on&s.policy.On == 0 {
		return false
	}
	if s.left == 0 {
		s.exhausted = true
		return false
	}
	if !s.x.src.replayable() || s.x.life.stopped() {
		return false
	}
	s.left--
	s.x.p.retries.Add(1)
	return true
}

// number counts the attempts that the policy has allowed so far, from 1.
func (s *series) number() int { return int(s.policy.Max-s.left) + 1 }

// pause waits until the next attempt is due.
func (s *series) pause() {
	s.x.src.rewind()
	wait := time.NewTimer(rand.N(s.interval))
	defer wait.Stop()
	s.interval = min(s.interval*backoffGrowth, s.most)
	select {
	case <-wait.C:
	case <-s.x.ctx.Done():
	}
}

// answerConditions returns the conditions that a response's head meets.
func (s *series) answerConditions(r *http.Response) resource.RetryOn {
	if s.policy.On == 0 {
		return 0
	}
	var on resource.RetryOn
	switch code := r.StatusCode; {
	case code >= http.StatusBadGateway && code <= http.StatusGatewayTimeout:
		on = resource.Retry5xx | resource.RetryGatewayError
	case code >= http.StatusInternalServerError:
		on = resource.Retry5xx
	case code == http.StatusConflict:
		on = resource.RetryRetriable4xx
	}
	if slices.Contains(s.policy.Statuses, r.StatusCode) {
		on |= resource.RetryRetriableStatusCodes
	}
	if s.x.grpc {
		on |= grpcConditions(r.Header.Get("Grpc-Status"))
	}
	return on & s.policy.On
}

// grpcConditions are those of a gRPC response that consists of its head.
func grpcConditions(status string) resource.RetryOn {
	switch status {
	case "1":
		return resource.RetryGRPCCancelled
	case "4":
		return resource.RetryGRPCDeadlineExceeded
	case "8":
		return resource.RetryGRPCResourceExhausted
	case "13":
		return resource.RetryGRPCInternal
	case "14":
		return resource.RetryGRPCUnavailable
	}
	return 0
}
