// SPDX-License-Identifier: Apache-2.0

package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nasp-tun/nasp-tun/mesh/telemetry"
)

var stamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)

// written returns what Run writes for the records, with times masked.
func written(t *testing.T, format string, emit func(*telemetry.Telemetry)) string {
	t.Helper()
	var out bytes.Buffer
	tel, _ := newTelemetry(t, telemetry.Config{Access: &out, AccessFormat: format})
	emit(tel)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tel.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return stamp.ReplaceAllString(out.String(), "TIME")
}

func emitSamples(tel *telemetry.Telemetry) {
	tel.Request(request(nil))
	tel.Request(request(func(r *telemetry.Record) {
		r.Protocol, r.GRPCStatus = telemetry.GRPC, "14"
		r.Path, r.Flags, r.Tries = "/echo.Echo/Echo", "UF,URX", 3
		r.Fail(telemetry.TLSIdentity, errors.New(`peer is "spiffe://x", want one of [a b]`))
		r.Fail(telemetry.ClientGone, errors.New("an echo of the first failure"))
	}))
	tel.Closed(flow(func(r *telemetry.Record) { r.BytesReceived, r.BytesSent = 5, 7 }))
	tel.Closed(flow(func(r *telemetry.Record) {
		r.Cluster, r.Endpoint, r.Upstream, r.MTLS, r.PeerID = nil, nil, "", false, ""
		r.Fail(telemetry.NoRoute, nil)
	}))
	tel.Request(request(func(r *telemetry.Record) { // what a client may try
		r.Host, r.Path, r.Method = "a b\"c\n=", "/\x00\xff ü", "-"
	}))
}

func TestAccessText(t *testing.T) {
	golden(t, "access.txt", written(t, "text", emitSamples))
}

func TestAccessJSON(t *testing.T) {
	got := written(t, "json", emitSamples)
	golden(t, "access.json", got)
	for line := range strings.Lines(got) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if strings.Contains(got, "secret") {
		t.Error("a query is in the access log")
	}
}

func TestAccessIsWrittenWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		tel, _ := newTelemetry(t, telemetry.Config{Access: &out})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = tel.Run(ctx) })
		for range 3 { // more than one turn of the loop
			tel.Closed(flow(nil))
			before := out.Len()
			<-out.grown
			if out.Len() <= before {
				t.Error("nothing was written")
			}
		}
		cancel()
		wg.Wait()
	})
}

func TestAccessAfterRun(t *testing.T) {
	var out bytes.Buffer
	tel, _ := newTelemetry(t, telemetry.Config{Access: &out})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = tel.Run(ctx)
	for n := range 3 { // flows that are cut at the end
		tel.Closed(flow(nil))
		if lines := strings.Count(out.String(), "\n"); lines != n+1 {
			t.Errorf("%d lines after %d records", lines, n+1)
		}
	}
}

func TestAccessNeverBlocksAndCountsLoss(t *testing.T) {
	stuck, release := io.Pipe() // nobody reads: Write blocks
	tel, reg := newTelemetry(t, telemetry.Config{Access: release})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tel.Run(ctx) })
	for range 5 * telemetry.MaxBuffered / 300 {
		tel.Closed(flow(nil))
	}
	cancel()
	_ = stuck.CloseWithError(io.ErrClosedPipe)
	wg.Wait()
	if got := exposition(t, reg, "nasp_tun_access_records_dropped_total"); strings.HasSuffix(got, " 0\n") {
		t.Error("records were dropped and not counted:", got)
	}
}

type syncBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	grown chan struct{}
	once  sync.Once
}

func (s *syncBuffer) init() { s.once.Do(func() { s.grown = make(chan struct{}, 1) }) }

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.grown <- struct{}{} }()
	return s.b.Write(p)
}

func (s *syncBuffer) Len() int {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Len()
}

func BenchmarkRequest(b *testing.B) {
	for _, bm := range []struct {
		name   string
		access io.Writer
	}{{"metrics", nil}, {"metrics and record", io.Discard}} {
		b.Run(bm.name, func(b *testing.B) {
			tel, _ := newTelemetry(b, telemetry.Config{Access: bm.access})
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = tel.Run(ctx) })
			r := request(nil)
			b.ReportAllocs()
			for b.Loop() {
				tel.Request(r)
			}
			cancel()
			wg.Wait()
		})
	}
}
