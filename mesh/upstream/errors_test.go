// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/tls"
	"io"
	"testing"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
	"github.com/nasp-tun/nasp-tun/mesh/upstream/upstreamtest"
)

func TestIsAlert(t *testing.T) {
	ca := upstreamtest.NewAuthority(t)
	a, b := upstreamtest.Pipe()
	cfg := ca.Server("spiffe://cluster.local/ns/testing/sa/default")
	go func() { _ = tls.Server(b, cfg).HandshakeContext(context.Background()) }()
	// Without a certificate: the server says so in an alert.
	c := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	_, err := c.Read(make([]byte, 1))
	if !upstream.IsAlert(err) {
		t.Errorf("%v is no alert", err)
	}
	if upstream.IsAlert(io.EOF) || upstream.IsAlert(nil) {
		t.Error("an end of stream is an alert")
	}
}
