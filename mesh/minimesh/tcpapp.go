// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

const (
	// bannerText is how a Banner port greets, by its workload's name.
	bannerText = "220 %s ready\r\n"
	// copyBuffer is big enough for several TLS records a turn.
	copyBuffer = 256 << 10
	// maxSizeLine bounds the line that a Source reads.
	maxSizeLine = 20
)

// serveTCP is the application of a TCP port. It ends its side when it is done
// and closes once the client has ended its own.
func (p *portServer) serveTCP(c net.Conn) {
	defer c.Close()
	var err error
	switch p.port.App {
	case Banner:
		if _, err = fmt.Fprintf(c, bannerText, p.w.name); err == nil {
			err = echo(c)
		}
	case Sink:
		err = sink(c)
	case Source:
		err = source(c)
	case Echo:
		err = echo(c)
	}
	if err != nil {
		p.w.mesh.logger.Debug("stream ended", "endpoint", p.w.name, "port", p.port.Number, "err", err)
		return
	}
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
	// Closing with bytes unread would be a reset, and could overtake what
	// was sent last.
	io.Copy(io.Discard, c)
}

// plain hides ReadFrom and WriteTo, so that copies use the buffer given.
type plain struct{ io.ReadWriter }

func echo(c net.Conn) error {
	_, err := io.CopyBuffer(plain{c}, plain{c}, make([]byte, copyBuffer))
	return err
}

// sink answers the end of the stream with its size and sum, which a client
// that only closes half can read.
func sink(c net.Conn) error {
	h := sha256.New()
	n, err := io.CopyBuffer(plain{struct {
		io.Reader
		io.Writer
	}{nil, h}}, plain{c}, make([]byte, copyBuffer))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "%d %x\n", n, h.Sum(nil))
	return err
}

func source(c net.Conn) error {
	line, err := bufio.NewReader(io.LimitReader(c, maxSizeLine)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	_, err = io.CopyBuffer(plain{c}, plain{struct {
		io.Reader
		io.Writer
	}{Pattern(n), nil}}, make([]byte, copyBuffer))
	return err
}

// Pattern returns n bytes that are always the same and of which no stretch
// repeats soon, so that a lost or doubled piece shows.
func Pattern(n int64) io.Reader { return io.LimitReader(&pattern{}, n) }

// patternPeriod is a prime, so that the pattern and the sizes of buffers and
// packets never fall into step.
const patternPeriod = 65521

var patternBytes = func() []byte {
	b := make([]byte, patternPeriod)
	x := uint32(1)
	for i := range b {
		x ^= x << 13 // xorshift32
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}()

type pattern struct{ at int }

// Read implements io.Reader.
func (p *pattern) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m := copy(b[n:], patternBytes[p.at:])
		n += m
		p.at = (p.at + m) % patternPeriod
	}
	return n, nil
}
