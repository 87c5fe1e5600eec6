// SPDX-License-Identifier: Apache-2.0

package minimesh

import (
	"log/slog"
	"net"
	"net/http"
)

// An Application is the echo of a workload without the mesh around it: what a
// pod runs behind a real sidecar. It sees the headers as the sidecar sends
// them, and proves nothing by itself.
type Application struct{ w *workload }

// NewApplication makes the echo that answers in the name of a pod.
func NewApplication(name string) *Application {
	return &Application{w: &workload{name: name, mesh: &Mesh{logger: slog.New(slog.DiscardHandler)}}}
}

// Handler serves HTTP/1, HTTP/2 and gRPC as the ports of a [Mesh] do; port is
// the one that its answers name.
func (a *Application) Handler(port uint16) http.Handler {
	return a.w.application(Port{Number: port})
}

// ServeTCP returns what comes, until the client ends its side, and closes c.
func (a *Application) ServeTCP(c net.Conn) {
	(&portServer{w: a.w, port: Port{App: Echo}}).serveTCP(c)
}
