// SPDX-License-Identifier: Apache-2.0

package heimdall

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxRequest bounds the body of a request, which has two short strings.
	maxRequest = 64 << 10
	// maxHeaderToken bounds an access token; a JWT of Kubernetes has 1 KiB.
	maxHeaderToken = 16 << 10
	// retryAfter is what a client that came in vain is told to wait, in seconds.
	retryAfter = "10"
)

// Handler serves POST /config, and GET / for probes. lookup tells what an
// access token is good for; its error, by the sentinels of this package,
// chooses the status, and anything else is a 500 that says nothing of itself.
// Comparing tokens in constant time is lookup's matter.
//
// An enrolment without instance addresses gets the address that the request
// came from, as with nasp's server.
func Handler(lookup func(ctx context.Context, token string) (Enrollment, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /config", func(w http.ResponseWriter, r *http.Request) {
		serveConfig(w, r, lookup)
	})
	mux.HandleFunc("/config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "POST is needed")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "no such path")
	})
	return mux
}

func serveConfig(w http.ResponseWriter, r *http.Request, lookup func(context.Context, string) (Enrollment, error)) {
	// What depends on a token must not stay in a cache.
	w.Header().Set("Cache-Control", "no-store")
	token, err := bearer(r.Header.Get("Authorization"))
	if err != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, http.StatusUnauthorized, err.Error())
		return
	}
	if code, err := checkBody(w, r); err != nil {
		refuse(w, code, err.Error())
		return
	}
	e, err := lookup(r.Context(), token)
	if err != nil {
		refuseError(w, err)
		return
	}
	if len(e.InstanceIPs) == 0 {
		if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			e.InstanceIPs = []netip.Addr{a.Addr().Unmap()}
		}
	}
	if err := e.Validate(); err != nil {
		refuseError(w, err)
		return
	}
	e.complete()
	media, marshal := mediaJSON, marshalNASP
	if wantsOwn(r.Header.Values("Accept")) {
		media, marshal = MediaType, marshalOwn
	}
	b, err := marshal(&e)
	if err != nil {
		refuseError(w, err)
		return
	}
	w.Header().Set("Vary", "Accept")
	w.Header().Set("Content-Type", media)
	w.Write(b)
}

var (
	errHeaderMissing = errors.New("authorization header is missing")
	errHeaderForm    = errors.New("incorrectly formatted authorization header")
	errBody          = errors.New("the body is not a JSON object")
	errBodyLarge     = errors.New("the body is too large")
)

// bearer reads the access token of a request.
func bearer(header string) (string, error) {
	if header == "" {
		return "", errHeaderMissing
	}
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxHeaderToken || strings.ContainsAny(token, " \t") {
		return "", errHeaderForm
	}
	return token, nil
}

// checkBody reads the body to its end. Its fields are of no consequence, but
// what is not JSON comes from something that is not a client.
func checkBody(w http.ResponseWriter, r *http.Request) (int, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return http.StatusRequestEntityTooLarge, errBodyLarge
		}
		return http.StatusBadRequest, errBody
	}
	if len(b) == 0 {
		return 0, nil
	}
	var req request
	if json.Unmarshal(b, &req) != nil {
		return http.StatusBadRequest, errBody
	}
	return 0, nil
}

// wantsOwn reports whether a client takes our form.
func wantsOwn(accepts []string) bool {
	for _, line := range accepts {
		for part := range strings.SplitSeq(line, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil || media != MediaType {
				continue
			}
			if q, err := strconv.ParseFloat(params["q"], 64); err == nil && q == 0 {
				continue
			}
			return true
		}
	}
	return false
}

// refuseError answers with the status of an error.
func refuseError(w http.ResponseWriter, err error) {
	for _, s := range statuses {
		if !errors.Is(err, s.kind) {
			continue
		}
		switch s.code {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", "Bearer")
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			w.Header().Set("Retry-After", retryAfter)
		}
		refuse(w, s.code, err.Error())
		return
	}
	refuse(w, http.StatusInternalServerError, "internal error")
}

func refuse(w http.ResponseWriter, code int, text string) {
	b, err := json.Marshal(map[string]string{"error": text})
	if err != nil {
		b = []byte(`{}`) // a string always marshals
	}
	w.Header().Set("Content-Type", mediaJSON)
	w.WriteHeader(code)
	w.Write(b)
}
