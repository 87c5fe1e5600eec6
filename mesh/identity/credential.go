// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
)

// A credential is both halves of how a channel to istiod authenticates, the
// connection and the calls on it, since each depends on the other: the
// certificate is shown only if there is no usable token, for a certificate
// that istiod no longer accepts breaks the handshake before any token is seen.
// It also remembers why the last connection failed, which gRPC reduces to text.
type credential struct {
	cfg IstiodConfig // set by Dial, then read-only

	mu      sync.Mutex  // guards the following
	conn    *istiodConn // the last connection made
	last    *Error      // why there is none that works; nil: there is
	token   string      // sent with the last call
	refused string      // by the server; not used while there is a certificate
}

var (
	_ credentials.TransportCredentials = (*credential)(nil)
	_ credentials.PerRPCCredentials    = (*credential)(nil)
)

// dial opens a connection for gRPC.
func (c *credential) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := c.cfg.Dialer(ctx, "tcp", address)
	if err != nil {
		return nil, c.fail(ErrUnreachable, fmt.Errorf("dial %s: %w", address, err))
	}
	return conn, nil
}

// ClientHandshake implements [credentials.TransportCredentials].
func (c *credential) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var present *tls.Certificate
	if _, err := c.usableToken(ctx); err != nil {
		present = c.certificate()
	}
	cfg, err := c.cfg.verifier(present)
	if err != nil {
		return nil, nil, c.fail(ErrUntrusted, err)
	}
	conn, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, cfg.ServerName, raw)
	if err != nil {
		return nil, nil, c.fail(handshakeKind(err), fmt.Errorf("handshake with %s as %s: %w", c.cfg.Address, c.cfg.ServerName, err))
	}
	ic := &istiodConn{Conn: conn, credential: c, byCertificate: present != nil}
	c.mu.Lock()
	c.conn = ic
	c.mu.Unlock()
	return ic, info, nil
}

// handshakeKind returns what kind of failure a handshake ended in.
func handshakeKind(err error) error {
	if verr := (*tls.CertificateVerificationError)(nil); errors.As(err, &verr) {
		return ErrUntrusted
	}
	if remoteAlert(err) {
		return ErrCertificateRefused
	}
	return ErrUnreachable
}

// remoteAlert reports whether err is a TLS alert that the other end sent.
func remoteAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// ServerHandshake implements [credentials.TransportCredentials].
func (c *credential) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("istiod credential: not a server's")
}

// Info implements [credentials.TransportCredentials].
func (c *credential) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials]. The clone is c itself,
// so that what is remembered is remembered once.
func (c *credential) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements [credentials.TransportCredentials]; the name
// comes from the config alone.
func (c *credential) OverrideServerName(string) error {
	return errors.New("istiod credential: the server name is fixed")
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (c *credential) RequireTransportSecurity() bool { return true }

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (c *credential) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := c.usableToken(ctx)
	c.mu.Lock()
	c.token = token
	conn := c.conn
	c.mu.Unlock()
	md := map[string]string{}
	if c.cfg.ClusterID != "" {
		md["clusterid"] = c.cfg.ClusterID
	}
	switch {
	case err == nil:
		md["authorization"] = "Bearer " + token
		return md, nil
	case conn != nil && conn.byCertificate:
		return md, nil
	case c.certificate() != nil:
		// The connection was made with a token that is gone since. The next
		// one will be made with the certificate.
		c.cfg.Logger.Info("no usable token, authenticating by certificate", "err", err)
		c.hangUp()
		return nil, &Error{Kind: ErrNoToken, Err: fmt.Errorf("%w; reconnecting with the certificate", err), Code: codes.Unavailable}
	}
	return nil, &Error{Kind: ErrNoToken, Err: err, Code: codes.Unauthenticated}
}

// usableToken returns a token, unless it is known not to be accepted.
func (c *credential) usableToken(ctx context.Context) (string, error) {
	if c.cfg.Token == nil {
		return "", errors.New("no source of tokens")
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := c.cfg.Token(ctx)
	if err != nil {
		return "", err
	}
	if err := checkToken(token, time.Now()); err != nil {
		return "", err
	}
	c.mu.Lock()
	refused := token == c.refused
	c.mu.Unlock()
	if refused && c.certificate() != nil {
		return "", errors.New("token was refused before")
	}
	return token, nil
}

// certificate returns our certificate if it is valid now.
func (c *credential) certificate() *tls.Certificate {
	if c.cfg.Certificate == nil {
		return nil
	}
	cert := c.cfg.Certificate()
	if cert == nil || len(cert.Certificate) == 0 {
		return nil
	}
	leaf := cert.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil
		}
	}
	if t := time.Now(); t.Before(leaf.NotBefore) || t.After(leaf.NotAfter) {
		return nil
	}
	return cert
}

// hangUp ends the current connection, so that the next call makes another.
func (c *credential) hangUp() {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
}

// fail remembers why there is no connection. It returns err itself and not an
// [Error]: gRPC would take that for the status of every call that waits.
func (c *credential) fail(kind, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = &Error{Kind: kind, Err: err, Code: codes.Unavailable}
	if kind == ErrCertificateRefused {
		c.refused = "" // a token that was refused is the better chance now
	}
	return err
}

// works notes that the last connection does.
func (c *credential) works() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = nil
}

// verdictTimeout bounds the wait for an alert on a connection that is broken
// already, where there is nothing to wait for.
const verdictTimeout = time.Second

// An istiodConn is a connection to istiod that keeps the reason if it ends
// before a word was said. In TLS 1.3 a server judges the client's certificate
// after the client has finished its handshake: the verdict is an alert, behind
// which the server closes, and it comes with the first read, or lies unread
// when the first write fails.
type istiodConn struct {
	net.Conn
	credential    *credential
	byCertificate bool
	spoken        atomic.Bool // by the server
	failed        sync.Once
}

// Read implements [net.Conn].
func (c *istiodConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	switch {
	case n > 0 && !c.spoken.Swap(true):
		c.credential.works()
	case err != nil:
		c.ended(err)
	}
	return n, err
}

// Write implements [net.Conn].
func (c *istiodConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && !c.spoken.Load() {
		cause := err
		_ = c.SetReadDeadline(time.Now().Add(verdictTimeout))
		if _, rerr := c.Conn.Read(make([]byte, 1)); remoteAlert(rerr) {
			cause = rerr
		}
		c.ended(cause)
	}
	return n, err
}

// ended notes why the connection ended, the first time.
func (c *istiodConn) ended(err error) {
	c.failed.Do(func() {
		switch {
		case remoteAlert(err):
			_ = c.credential.fail(ErrCertificateRefused, err)
		case !c.spoken.Load():
			_ = c.credential.fail(ErrUnreachable, err)
		}
	})
}
