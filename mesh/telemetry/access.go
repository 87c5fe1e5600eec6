// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A format writes one record as one line.
type format interface {
	begin(b []byte, msg string, t time.Time) []byte
	text(b []byte, key, value string) []byte
	number(b []byte, key string, value int64) []byte
	end(b []byte) []byte
}

func parseFormat(name string) (format, error) {
	switch name {
	case "", "text":
		return logfmt{}, nil
	case "json":
		return jsonLine{}, nil
	}
	return nil, fmt.Errorf("access log format %q: want text or json", name)
}

// appendRecord writes the line of r. The keys are fixed and their order too;
// those of HTTP are there for requests only.
func appendRecord(b []byte, f format, r *Record, now time.Time) []byte {
	http := r.Protocol == HTTP || r.Protocol == GRPC
	msg := "connection complete"
	if http {
		msg = "request complete"
	}
	b = f.begin(b, msg, now)
	b = f.text(b, "protocol", r.Protocol)
	b = f.text(b, "src", addrText(r.Src))
	b = f.text(b, "dst", addrText(r.Dst))
	b = f.text(b, "service", recordService(r))
	b = f.text(b, "upstream", r.Upstream)
	b = f.text(b, "peer", r.PeerID)
	b = f.text(b, "security", security(r))
	if http {
		b = f.text(b, "method", r.Method)
		b = f.text(b, "host", r.Host)
		b = f.text(b, "path", withoutQuery(r.Path))
		b = f.number(b, "status", int64(r.Status))
		if r.Protocol == GRPC {
			b = f.text(b, "grpc_status", r.GRPCStatus)
		}
		b = f.text(b, "route", r.Route)
		b = f.text(b, "request_id", r.RequestID)
		b = f.number(b, "tries", int64(r.Tries))
	}
	b = f.text(b, "flags", strings.TrimPrefix(r.flags(), "-")) // Envoy's word for none
	b = f.text(b, "reason", string(r.Reason))
	b = f.number(b, "bytes_in", r.BytesReceived)
	b = f.number(b, "bytes_out", r.BytesSent)
	b = f.text(b, "duration", milliseconds(r.duration()))
	if r.Err != nil {
		b = f.text(b, "err", r.Err.Error())
	}
	return f.end(b)
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// recordService names where the flow went: the service, or else the cluster.
func recordService(r *Record) string {
	if r.Cluster == nil {
		return ""
	}
	if s := r.Cluster.Istio.Service(); s.Host != "" {
		return s.Host
	}
	return r.Cluster.Name
}

func security(r *Record) string {
	switch {
	case r.Upstream == "":
		return ""
	case r.MTLS:
		return "mutual_tls"
	}
	return "none"
}

// milliseconds writes durations in one unit, so that they compare by eye.
func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1e3, 'f', 3, 64) + "ms"
}

// withoutQuery cuts what often carries tokens: a log must hold no secret.
func withoutQuery(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return path
}

// logfmt is key=value, with "-" for what is empty.
type logfmt struct{}

func (logfmt) begin(b []byte, msg string, t time.Time) []byte {
	b = append(b, "time="...)
	b = t.AppendFormat(b, timeFormat)
	b = append(b, " msg="...)
	return strconv.AppendQuote(b, msg)
}

func (logfmt) text(b []byte, key, value string) []byte {
	b = append(append(append(b, ' '), key...), '=')
	switch {
	case value == "":
		return append(b, '-')
	case plain(value):
		return append(b, value...)
	}
	return strconv.AppendQuote(b, value)
}

func (logfmt) number(b []byte, key string, value int64) []byte {
	b = append(append(append(b, ' '), key...), '=')
	return strconv.AppendInt(b, value, 10)
}

func (logfmt) end(b []byte) []byte { return append(b, '\n') }

// plain reports whether a value reads unambiguously without quotes.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= utf8.RuneSelf || c == 0x7f || c == '"' || c == '=' || c == '\\' {
			return false
		}
	}
	return s != "-"
}

// jsonLine is one object a line; what is empty is left out.
type jsonLine struct{}

func (jsonLine) begin(b []byte, msg string, t time.Time) []byte {
	b = append(b, `{"time":"`...)
	b = t.AppendFormat(b, timeFormat)
	b = append(b, `","msg":`...)
	return appendJSON(b, msg)
}

func (jsonLine) text(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), key...), `":`...)
	return appendJSON(b, value)
}

func (jsonLine) number(b []byte, key string, value int64) []byte {
	b = append(append(append(b, `,"`...), key...), `":`...)
	return strconv.AppendInt(b, value, 10)
}

func (jsonLine) end(b []byte) []byte { return append(b, "}\n"...) }

// appendJSON writes s as a JSON string. The common case copies.
func appendJSON(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // never for a string
				return append(b, `""`...)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// timeFormat is RFC 3339 in UTC with milliseconds.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"
