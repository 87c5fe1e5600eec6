// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/x509"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
)

// endless is a body of spaces, which JSON takes any number of.
type endless struct {
	left int64
	read atomic.Int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := min(int64(len(p)), e.left-e.read.Load())
	if n == 0 {
		return 0, io.EOF
	}
	for i := range p[:n] {
		p[i] = ' '
	}
	e.read.Add(n)
	return int(n), nil
}

// A body without an end is not read to it.
func TestEndlessBody(t *testing.T) {
	w := start(t, nil)
	tr := http.DefaultTransport.(*http.Transport).Clone()
	defer tr.CloseIdleConnections()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.roots)
	tr.TLSClientConfig.RootCAs = pool
	body := &endless{left: 1 << 30}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.public+"/config", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.fresh())
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %s", resp.Status)
	}
	if body.read.Load() > 8<<20 {
		t.Errorf("%d bytes were taken", body.read.Load())
	}
}
