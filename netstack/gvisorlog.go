// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// gvisorLog takes what gVisor logs. Left alone it goes to standard error,
// which under `exec` is the program's own. gVisor has one target for the whole
// process: with several Stacks it is the logger of the newest.
type gvisorLog struct{ to *slog.Logger }

// Emit implements [log.Emitter]. What gVisor calls a warning may be said of a
// packet, so that it is a matter of debugging here.
func (g gvisorLog) Emit(_ int, level log.Level, _ time.Time, format string, v ...any) {
	g.to.Debug("gvisor", "level", level.String(), "text", fmt.Sprintf(format, v...))
}
