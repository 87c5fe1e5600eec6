// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"fmt"
	"runtime"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nasp-tun/nasp-tun/mesh/resource"
)

// manyClusters returns a recorded cluster under many names.
func manyClusters(tb testing.TB, n int) []*anypb.Any {
	tb.Helper()
	var c clusterv3.Cluster
	if err := recorded(tb, "envoy.config.cluster.v3.Cluster")[1].GetResource().UnmarshalTo(&c); err != nil {
		tb.Fatal(err)
	}
	list := make([]*anypb.Any, n)
	for i := range list {
		c.Name = fmt.Sprintf("outbound|80||svc-%d.testing.svc.cluster.local", i)
		c.EdsClusterConfig.ServiceName = c.Name
		b, err := proto.Marshal(&c)
		if err != nil {
			tb.Fatal(err)
		}
		list[i] = &anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", Value: b}
	}
	return list
}

func BenchmarkDecodeCluster(b *testing.B) {
	list := manyClusters(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := resource.DecodeCluster(list[0]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory reports what 10,000 clusters keep.
func BenchmarkMemory(b *testing.B) {
	list := manyClusters(b, 10_000)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		out := make([]*resource.Cluster, len(list))
		for i, a := range list {
			c, err := resource.DecodeCluster(a)
			if err != nil {
				b.Fatal(err)
			}
			out[i] = c
		}
		b.ReportMetric(float64(heap()-before)/float64(len(list)), "B/cluster")
		runtime.KeepAlive(out)
	}
}
