// SPDX-License-Identifier: Apache-2.0

package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/nasp-tun/nasp-tun/netstack"
	"github.com/nasp-tun/nasp-tun/netstack/netstacktest"
)

const bulkBytes = 64 << 20

// minMean is the least mean packet of a bulk transfer, ACKs left out: below,
// superpackets are being cut up somewhere.
const minMean = 40 << 10

// stream returns the bytes of a transfer: the same for the same seed.
func stream(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

func sum(r io.Reader) ([32]byte, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return [32]byte(h.Sum(nil)), n, err
}

// 64 MiB in each direction at once arrive whole and in order.
func TestBulkBothWays(t *testing.T) {
	for _, l := range links {
		t.Run(l.name, func(t *testing.T) {
			size := int64(bulkBytes)
			if testing.Short() {
				size /= 16 // with the race detector, each packet costs
			}
			up, _, _ := sum(stream(1, size))
			down, _, _ := sum(stream(2, size))
			served := make(chan struct{})
			c, s := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				defer close(served)
				sent := make(chan error, 1)
				go func() {
					_, err := io.Copy(conn, stream(2, size))
					sent <- errors.Join(err, conn.CloseWrite())
				}()
				if got, n, err := sum(conn); got != up || err != nil {
					t.Errorf("upload: %d bytes, %v, or changed", n, err)
				}
				if err := <-sent; err != nil {
					t.Errorf("download: %v", err)
				}
			})}, l.opt, netstack.Limits{})
			conn, err := c.DialTCP(t.Context(), l.dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(conn, stream(1, size))
				sent <- errors.Join(err, conn.CloseWrite())
			}()
			if got, n, err := sum(conn); got != down || err != nil {
				t.Errorf("download: %d bytes, %v, or changed", n, err)
			}
			if err := <-sent; err != nil {
				t.Errorf("upload: %v", err)
			}
			<-served
			if got := s.Stats(); got.Device.RxMalformed+got.Device.RxChecksum != 0 {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

// A superpacket of the client reaches the stack in one piece, and one of ours
// the client.
func TestSuperpacketsStayWhole(t *testing.T) {
	for _, l := range links[:2] {
		t.Run("up "+l.name, func(t *testing.T) {
			done := make(chan struct{})
			c, s := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				defer close(done)
				io.Copy(io.Discard, conn)
			})}, l.opt, netstack.Limits{})
			transfer(t, c, l.dst, func(conn *netstacktest.Conn) { write(t, conn, bulkBytes) })
			<-done
			checkMean(t, s.Stats().Device.RxMean())
		})
		t.Run("down "+l.name, func(t *testing.T) {
			c, s := start(t, handler{tcp: accept(t, func(_ context.Context, conn *netstack.TCPConn) {
				write(t, conn, bulkBytes)
			})}, l.opt, netstack.Limits{})
			transfer(t, c, l.dst, func(conn *netstacktest.Conn) { io.Copy(io.Discard, conn) })
			checkMean(t, s.Stats().Device.TxMean())
		})
	}
}

// write sends n bytes in pieces that make the largest segments.
func write(t *testing.T, w io.Writer, n int) {
	t.Helper()
	b := make([]byte, 65372)
	for ; n > 0; n -= len(b) {
		if _, err := w.Write(b[:min(n, len(b))]); err != nil {
			t.Fatal(err)
		}
	}
}

func checkMean(t *testing.T, mean uint64) {
	t.Helper()
	if mean < minMean {
		t.Errorf("mean packet %d bytes, want at least %d", mean, minMean)
	}
}
