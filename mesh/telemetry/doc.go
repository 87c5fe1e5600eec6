// SPDX-License-Identifier: Apache-2.0

// Package telemetry tells what became of each connection and request: in
// Istio's standard metrics, so that the dashboards of a mesh show this client
// as they show a sidecar, and in one access record, for people.
//
// The data path fills in a [Record] as a flow goes on and hands it over: a TCP
// flow by [Telemetry.Opened] and [Telemetry.Closed], an HTTP request by
// [Telemetry.Request]. Names, labels and values are those of Istio's
// istio_stats filter for an outbound sidecar (reporter="source"); the
// histogram buckets are Envoy's defaults. What Istio has no name for is
// counted under nasp_tun_.
//
// Why a flow failed is a [Reason]: a closed list, the same in the access
// record, in the label of nasp_tun_flows_total and in the README.
//
// The cost of a request is one look-up in a map of resolved label sets. Their
// number is bounded; past the bound the destination reads "unknown", and that
// is counted. Access records are written by [Telemetry.Run] behind a bounded
// buffer: a slow disk never holds up a flow, and what had to be dropped is
// counted too.
package telemetry
