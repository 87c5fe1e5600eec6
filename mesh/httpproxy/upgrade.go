// SPDX-License-Identifier: Apache-2.0

package httpproxy

import (
	"io"
	"sync"

	"github.com/nasp-tun/nasp-tun/mesh/upstream"
)

// switched implements client: after a 101 bytes go both ways, each direction
// with its own end, until both have ended.
func (c *client1) switched(x *exchange, a *attempt) error {
	c.last = true
	defer a.end(false)
	h := a.resp.Header
	proto := stripHop(h)
	if proto == "" {
		proto = x.upgrade
	}
	x.mutateAnswer(h)
	x.begun.Store(true)
	c.statusAndFields(a.resp.Status, h)
	c.w.str("Connection: Upgrade\r\n")
	c.w.field("Upgrade", proto)
	c.w.str("\r\n")
	if err := c.w.flush(); err != nil {
		return err
	}
	x.src.wg.Wait() // a body, which ends before the protocol changes
	return c.splice(x, a.lease.H1)
}

func (c *client1) splice(x *exchange, up *upstream.H1) error {
	var toUp error
	var wg sync.WaitGroup
	wg.Go(func() {
		var n int64
		n, toUp = copyEnd(up, c.head.br, x)
		x.src.n.Add(n)
		if toUp != nil {
			up.Abort() // the other direction ends with it
		}
	})
	n, err := copyEnd(c.conn, up.R, x)
	x.rec.BytesSent += n
	if err != nil {
		c.abort()
		up.Abort()
	}
	wg.Wait()
	if toUp != nil {
		c.abort()
		return toUp
	}
	return err
}

// copyEnd copies to the end of src, and ends dst's stream then.
func copyEnd(dst interface {
	io.Writer
	CloseWrite() error
}, src io.Reader, x *exchange,
) (n int64, err error) {
	buf := relayBuffers.Get().(*[]byte)
	defer relayBuffers.Put(buf)
	b := (*buf)[:cap(*buf)]
	for {
		m, err := src.Read(b)
		if m > 0 {
			if _, err := dst.Write(b[:m]); err != nil {
				return n, err
			}
			n += int64(m)
			x.touch(m)
		}
		if err == io.EOF {
			return n, dst.CloseWrite()
		}
		if err != nil {
			return n, err
		}
	}
}
