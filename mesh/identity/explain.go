// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unary explains the errors of calls, as for certificates.
func (c *credential) unary(ctx context.Context, method string, req, reply any,
	cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	return c.explain(invoke(ctx, method, req, reply, cc, opts...))
}

// stream explains the errors of streams, as for configuration.
func (c *credential) stream(ctx context.Context, desc *grpc.StreamDesc,
	cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, c.explain(err)
	}
	return &explainedStream{ClientStream: s, credential: c}, nil
}

type explainedStream struct {
	grpc.ClientStream
	credential *credential
}

// RecvMsg implements [grpc.ClientStream].
func (s *explainedStream) RecvMsg(m any) error {
	return s.credential.explain(s.ClientStream.RecvMsg(m))
}

// explain gives an error of a call its kind, and draws the consequence.
func (c *credential) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	code := status.Code(err)
	switch code {
	case codes.Unauthenticated:
		if c.credentialRefused() {
			code = codes.Unavailable // worth repeating at once
		}
		return &Error{Kind: ErrTokenRefused, Err: err, Code: code}
	case codes.PermissionDenied:
		return &Error{Kind: ErrForbidden, Err: err, Code: code}
	case codes.Unavailable, codes.DeadlineExceeded:
		c.mu.Lock()
		last := c.last
		c.mu.Unlock()
		if last != nil {
			return &Error{Kind: last.Kind, Err: last.Err, Code: code}
		}
	}
	return err
}

// credentialRefused has the next connection made by certificate, if there is
// one, or by token again, if it was the certificate that was refused. It
// reports whether the next call will authenticate in another way than this one.
func (c *credential) credentialRefused() bool {
	fallback := c.certificate() != nil
	c.mu.Lock()
	byCertificate := c.conn != nil && c.conn.byCertificate
	c.refused = ""
	if fallback && !byCertificate {
		c.refused = c.token
	}
	c.mu.Unlock()
	if fallback {
		c.hangUp()
	}
	return fallback && !byCertificate
}

// checkToken refuses a token that cannot be valid: none at all, one that
// cannot be a header, or a JWT past its own expiry. The signature is for the
// server to judge.
func checkToken(token string, now time.Time) error {
	if token == "" {
		return errors.New("token is empty")
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("token holds a character that cannot be sent")
	}
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return nil // not a JWT
	}
	payload, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		return nil // not a JWT
	}
	var claims struct {
		Expiry float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Expiry <= 0 {
		return nil
	}
	if t := time.Unix(int64(claims.Expiry), 0); now.After(t) {
		return fmt.Errorf("token expired at %s", t.Format(time.RFC3339))
	}
	return nil
}
