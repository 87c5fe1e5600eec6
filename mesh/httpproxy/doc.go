// SPDX-License-Identifier: Apache-2.0

// Package httpproxy serves HTTP connections as a sidecar would: each request
// is routed by itself, sent to an endpoint over the transport that the mesh
// asks for, repeated where the mesh's policy says so, and recorded once.
//
// A request's way through the files:
//
//	client1.go, head.go   HTTP/1 from the client: heads are checked as bytes, then parsed
//	client2.go            HTTP/2 from the client (h2c with prior knowledge, gRPC)
//	exchange.go           one request, whatever the client speaks
//	route.go              virtual host, route, rewrites, answers of our own
//	try.go, retry.go      endpoint, connection, attempt; and the next attempt
//	up1.go, up2.go        the attempt over HTTP/1 and over HTTP/2
//	body.go, relay.go     bodies, which stream and are re-framed, never copied as framed
//
// The two sides are independent: any client protocol goes to any upstream
// protocol, by way of [net/http.Request] and [net/http.Response]. The engines on
// both sides can be replaced without the middle noticing; those of HTTP/2 are
// net/http's own for now.
//
// # HTTP/1
//
// One goroutine serves a client connection. A request without a body, or whose
// body came with its head, is written, answered and relayed by that goroutine
// alone. Only a longer body starts a second one, the pump, so that request and
// response flow at the same time. http.Server, Transport and ReverseProxy are
// not used: they add, drop or rewrite what a transparent proxy must leave alone,
// and cost half of the requests per second.
//
// What http.ReadRequest lets pass or hides, such as Content-Length beside
// Transfer-Encoding, is refused on the raw head before it is parsed; see
// checkHead. Framing is always made anew from parsed values, so that two
// parsers' disagreement cannot travel.
//
// Known differences from Envoy: trailers and 1xx responses pass; Expect:
// 100-continue is answered by the endpoint; two Host fields are refused instead
// of joined; HTTP/1.0 is served whether or not accept_http_10 is set; header
// names keep Go's canonical case. Not supported: CONNECT, the upgrade from
// HTTP/1 to h2c (the Upgrade field is dropped, so the client stays with
// HTTP/1), and WebSocket over an HTTP/2 upstream (answered by 501).
//
// # When things break
//
// A client that resets its connection cancels its request at once. One that
// merely closes its sending side still gets its answer; if it is gone for good,
// its kernel resets the connection as soon as something arrives, and at the
// latest at the next TCP keepalive. An upstream that dies before it answered
// becomes a 503 with the reason in the header x-nasp-tun-reason; one that dies
// inside a body becomes a reset, since the client must see that something is
// missing.
package httpproxy
