// SPDX-License-Identifier: Apache-2.0

// Command bulk moves bytes, and closes its side early:
//
//	bulk up ADDR BYTES      sends, ends its side, prints the answer
//	bulk down ADDR BYTES    asks for bytes, prints their number and sum
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: bulk up|down ADDR BYTES")
	}
	n, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", args[1]) //rule:allow an ordinary program inside the tunnel
	if err != nil {
		return err
	}
	defer c.Close()
	if args[0] == "up" {
		return up(c.(*net.TCPConn), n)
	}
	return down(c.(*net.TCPConn), n)
}

func up(c *net.TCPConn, n int64) error {
	h := sha256.New()
	src := io.TeeReader(io.LimitReader(&counter{}, n), h)
	if _, err := io.CopyBuffer(struct{ io.Writer }{c}, src, make([]byte, 256<<10)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Printf("sent %d %x\ngot %s", n, h.Sum(nil), answer)
	return nil
}

func down(c *net.TCPConn, n int64) error {
	if _, err := fmt.Fprintf(c, "%d\n", n); err != nil {
		return err
	}
	// The server still sends long after our side has ended.
	if err := c.CloseWrite(); err != nil {
		return err
	}
	h := sha256.New()
	got, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	fmt.Printf("%d %x\n", got, h.Sum(nil))
	return nil
}

// counter makes bytes of which no stretch repeats soon.
type counter struct{ x uint32 }

func (c *counter) Read(b []byte) (int, error) {
	for i := range b {
		c.x = c.x*1664525 + 1013904223 // Numerical Recipes' constants
		b[i] = byte(c.x >> 24)
	}
	return len(b), nil
}
