// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// httpEcho is the HTTP application. Every path that it does not know answers
// with what was seen of the request.
func (w *workload) httpEcho(p Port) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return // the client has gone
		}
		rw.Header().Set("Content-Type", "text/plain")
		io.WriteString(rw, w.report(p, r))
		if n > 0 {
			fmt.Fprintf(rw, "\nRequest Body: %d bytes\n", n)
		}
	})
	mux.HandleFunc("/status/{code}", handleStatus)
	mux.HandleFunc("/flaky/{key}", w.handleFlaky)
	mux.HandleFunc("/delay/{duration}", handleDelay)
	mux.HandleFunc("/stream", handleStream)
	mux.HandleFunc("/upload", handleUpload)
	mux.HandleFunc("/download", handleDownload)
	mux.HandleFunc("/trailers", handleTrailers)
	mux.HandleFunc("/early", handleEarly)
	mux.HandleFunc("/hints", handleHints)
	mux.HandleFunc("/duplex", handleDuplex)
	mux.HandleFunc("/abort", handleAbort)
	mux.HandleFunc("/ws", handleWebSocket)
	return mux
}

// handleStatus answers with the code of the path.
func handleStatus(rw http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(rw, "a final status code is needed", http.StatusBadRequest)
		return
	}
	rw.WriteHeader(code)
}

// handleFlaky fails the first requests of a key, over all endpoints of the
// mesh: ?fail=N with ?code=C, 503 by default. It shows whether a client
// tries again.
func (w *workload) handleFlaky(rw http.ResponseWriter, r *http.Request) {
	fail, code := queryInt(r, "fail", 1), queryInt(r, "code", http.StatusServiceUnavailable)
	tries := w.mesh.tried(r.PathValue("key"))
	rw.Header().Set("X-Tries", strconv.Itoa(tries))
	rw.Header().Set("X-Endpoint", w.name)
	if tries <= fail {
		rw.WriteHeader(code)
	}
}

// tried counts the requests of a key.
func (m *Mesh) tried(key string) int {
	m.acceptMu.Lock()
	defer m.acceptMu.Unlock()
	if m.tries == nil {
		m.tries = map[string]int{}
	}
	m.tries[key]++
	return m.tries[key]
}

// handleDelay answers after a Go duration, unless the client goes first.
func handleDelay(rw http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.PathValue("duration"))
	if err != nil {
		http.Error(rw, "a duration is needed", http.StatusBadRequest)
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		fmt.Fprintf(rw, "waited %v\n", d)
	case <-r.Context().Done():
	}
}

// handleStream sends ?n events, ?every apart; n=0 goes on until the client
// ends it.
func handleStream(rw http.ResponseWriter, r *http.Request) {
	every, err := time.ParseDuration(r.URL.Query().Get("every"))
	if err != nil || every <= 0 {
		every = time.Millisecond
	}
	rw.Header().Set("Content-Type", "text/event-stream")
	ctl := http.NewResponseController(rw)
	t := time.NewTicker(every)
	defer t.Stop()
	n := queryInt(r, "n", 3)
	for i := 1; n == 0 || i <= n; i++ {
		if _, err := fmt.Fprintf(rw, "data: %d\n\n", i); err != nil {
			return
		}
		if err := ctl.Flush(); err != nil {
			return
		}
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
}

// handleUpload answers with the size and the sum of the body.
func handleUpload(rw http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.CopyBuffer(h, plain{struct {
		io.Reader
		io.Writer
	}{r.Body, nil}}, make([]byte, copyBuffer))
	if err != nil {
		return
	}
	fmt.Fprintf(rw, "%d %x\n", n, h.Sum(nil))
}

// handleDownload sends ?size bytes of [Pattern], with Content-Length unless
// ?chunked is given.
func handleDownload(rw http.ResponseWriter, r *http.Request) {
	size := int64(queryInt(r, "size", 0))
	rw.Header().Set("Content-Type", "application/octet-stream")
	if !r.URL.Query().Has("chunked") {
		rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	io.CopyBuffer(plain{struct {
		io.Reader
		io.Writer
	}{nil, rw}}, Pattern(size), make([]byte, copyBuffer))
}

// handleTrailers returns the trailers of the request as trailers, and one of
// its own.
func handleTrailers(rw http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		return
	}
	rw.Header().Set("Trailer", "X-Checked")
	fmt.Fprintf(rw, "%d bytes, %d trailers\n", n, len(r.Trailer))
	rw.Header().Set("X-Checked", strconv.FormatInt(n, 10))
	for name, values := range r.Trailer {
		for _, v := range values {
			rw.Header().Add(http.TrailerPrefix+name, v)
		}
	}
}

// handleEarly refuses without reading the body.
func handleEarly(rw http.ResponseWriter, _ *http.Request) {
	http.Error(rw, "refused early", http.StatusRequestEntityTooLarge)
}

// handleHints sends an informational answer first.
func handleHints(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Link", "</style.css>; rel=preload")
	rw.WriteHeader(http.StatusEarlyHints)
	rw.Header().Del("Link")
	io.WriteString(rw, "hinted\n")
}

// handleDuplex returns each piece of the body as it comes.
func handleDuplex(rw http.ResponseWriter, r *http.Request) {
	ctl := http.NewResponseController(rw)
	if err := ctl.EnableFullDuplex(); err != nil && r.ProtoMajor == 1 {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.WriteHeader(http.StatusOK)
	if err := ctl.Flush(); err != nil {
		return
	}
	b := make([]byte, copyBuffer)
	for {
		n, err := r.Body.Read(b)
		if n > 0 {
			if _, err := rw.Write(b[:n]); err != nil {
				return
			}
			if err := ctl.Flush(); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// handleAbort breaks off in the middle of the body: of the connection with
// HTTP/1, of the stream with HTTP/2.
func handleAbort(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Length", "100")
	io.WriteString(rw, "half")
	http.NewResponseController(rw).Flush()
	panic(http.ErrAbortHandler)
}

func queryInt(r *http.Request, key string, fallback int) int {
	n, err := strconv.Atoi(r.URL.Query().Get(key))
	if err != nil {
		return fallback
	}
	return n
}
