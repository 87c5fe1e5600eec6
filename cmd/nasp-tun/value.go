// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// parsed is a flag whose text is checked and turned into a T at the edge, so
// that the rest of the program has no strings to validate. It keeps the text,
// which is what help, config view and status show.
type parsed[T any] struct {
	to    *T
	text  string
	kind  string
	parse func(string) (T, error)
}

func (v *parsed[T]) String() string { return v.text }
func (v *parsed[T]) Type() string   { return v.kind }

func (v *parsed[T]) Set(s string) error {
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.to, v.text = t, s
	return nil
}

// listed is a flag that may be given several times, and takes several values
// with commas between them. The first time replaces the default.
type listed[T any] struct {
	to    *[]T
	texts []string
	kind  string
	set   bool
	parse func(string) (T, error)
}

func (v *listed[T]) String() string { return strings.Join(v.texts, ",") }
func (v *listed[T]) Type() string   { return v.kind }

func (v *listed[T]) Set(s string) error {
	if !v.set {
		*v.to, v.texts, v.set = nil, nil, true
	}
	for part := range strings.SplitSeq(s, ",") {
		t, err := v.parse(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		*v.to, v.texts = append(*v.to, t), append(v.texts, strings.TrimSpace(part))
	}
	return nil
}

// oneOf checks a word against the words that a flag knows.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", fmt.Errorf("%q: must be %s", s, strings.Join(words, " or "))
		}
		return s, nil
	}
}

// A label is one of the workload's labels.
type label struct{ key, value string }

func parseLabel(s string) (label, error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return label{}, errors.New("must be KEY=VALUE")
	}
	return label{key, value}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: must be a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%q: must be an IP address of this host, such as 192.168.1.7", s)
	}
	return a.Unmap(), nil
}

// parseHostPort checks HOST:PORT of something to be dialled.
func parseHostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", fmt.Errorf("%q: must be HOST:PORT, such as istiod.example.com:15012", s)
	}
	if _, err := parsePort(port); err != nil {
		return "", err
	}
	return s, nil
}

// parseListen checks an address to listen on. Without a host it means this
// machine only: what is served there is not for the network to read.
func parseListen(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = "", s
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("%q: must be [ADDRESS]:PORT, such as 127.0.0.1:15090", s)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// parseHeimdallURL takes https only: the bearer token goes over it.
func parseHeimdallURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q: not a URL", s)
	case u.Scheme == "http":
		return nil, fmt.Errorf("%q: must be https, since a token is sent to it", u.Redacted())
	case u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("%q: must be https://HOST[:PORT][/PATH]", u.Redacted())
	case u.User != nil:
		return nil, errors.New("must not hold a password: secrets come from --token-file")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%q: must not have a query or a fragment", u.Redacted())
	}
	return u, nil
}

// parseSessionName holds names to what is safe and short in a socket's path.
func parseSessionName(s string) (string, error) {
	if s == "" || len(s) > maxSessionName || strings.Trim(s, sessionNameChars) != "" || strings.HasPrefix(s, ".") {
		return "", fmt.Errorf("%q: must be at most %d of a-z, A-Z, 0-9, dot, dash and underscore", s, maxSessionName)
	}
	return s, nil
}

const (
	// maxSessionName leaves room in a socket address, which ends at 108
	// bytes, for the folder, the process id and the suffix.
	maxSessionName   = 32
	sessionNameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
)
