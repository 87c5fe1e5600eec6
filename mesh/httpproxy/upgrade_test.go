// SPDX-License-Identifier: Apache-2.0

package httpproxy_test

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
)

func TestWebSocket(t *testing.T) {
	e := newEnv(t)
	e.serve(hostA, func(s *server) {
		head, err := s.head()
		if err != nil || !strings.Contains(head, "Connection: Upgrade\r\nUpgrade: websocket\r\n") || !strings.Contains(head, "Sec-Websocket-Key: k\r\n") {
			s.say(ok("not an upgrade: " + head))
			return
		}
		s.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhello ")
		b, err := io.ReadAll(s.br)
		if err != nil {
			return
		}
		s.say("and " + string(b)) // after the client's half-close
	})
	e.start()
	c := e.client()
	c.send("GET /ws HTTP/1.1\r\nHost: echo.testing\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly ")
	c.expect("HTTP/1.1 101 Switching Protocols\r\nSec-Websocket-Accept: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello ")
	c.send("bytes")
	_ = c.CloseWrite()
	if rest, err := c.all(); rest != "and early bytes" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	e.record(c, "status", 101, "reason", "", "bytes_in", 11, "bytes_out", len("hello and early bytes"))
}

func TestWebSocketResets(t *testing.T) {
	for _, by := range []string{"client", "endpoint"} {
		e := newEnv(t)
		seen := make(chan error, 1)
		e.serve(hostA, func(s *server) {
			if _, err := s.head(); err != nil {
				return
			}
			s.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n!")
			if by == "endpoint" {
				_, _ = s.br.ReadByte()
				s.raw().Abort()
				return
			}
			_, err := io.ReadAll(s.br)
			seen <- err
		})
		e.start()
		c := e.client()
		c.send("GET /ws HTTP/1.1\r\nHost: echo.testing\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		c.expect("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n!")
		if by == "client" {
			c.Abort()
			if err := <-seen; err == nil {
				t.Error("the endpoint saw an orderly end")
			}
		} else {
			c.send("x")
			if _, err := c.all(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client saw %v", err)
			}
		}
		<-c.done
	}
}

func TestUpgradeNotAllowed(t *testing.T) {
	e := newEnv(t)
	e.answer(hostA, mirror)
	e.start()
	c := e.client()
	c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\nConnection: Upgrade\r\nUpgrade: spdy/3.1\r\n\r\n")
	if r, body := c.response("GET"); r.StatusCode != 403 || !strings.Contains(body, "spdy/3.1") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	c.send("GET / HTTP/1.1\r\nHost: echo.testing\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
	if r, body := c.response("GET"); r.StatusCode != 200 || strings.Contains(strings.ToLower(body), "upgrade") || strings.Contains(body, "Settings") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
}
