// SPDX-License-Identifier: Apache-2.0

package host

import (
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killedMoments is at how many moments between start and a running program the
// parent is killed.
const killedMoments = 20

// TestParentKilledAtAnyMoment: no process of ours stays, nor anything else, since all
// of it belongs to processes, and a program that lives on has no network. Whatever was
// started holds our pipe open, so its end says that all are gone.
func TestParentKilledAtAnyMoment(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		const script = `exec $EXEC --begin -- $X probe survivor`
		var whole time.Duration
		for i := range killedMoments + 1 {
			cmd, out := startJob(t, w, script)
			expect(t, out, "begin")
			begun := time.Now()
			if i == 0 { // how long it takes, and the last of the moments
				expect(t, out, "ready")
				whole = time.Since(begun)
			}
			killer := time.AfterFunc(time.Duration(i)*whole/killedMoments, func() { _ = cmd.Process.Kill() })
			rest, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			killer.Stop()
			_ = cmd.Wait()
			if i == 0 {
				rest = append([]byte("ready\n"), rest...)
			}
			if said := string(rest); said != "" && (!strings.HasPrefix(said, "ready\n") || !strings.Contains(said, "network is unreachable")) {
				t.Errorf("moment %d: %q", i, said)
			}
		}
	})
}

const orphaning = `mkdir -m 777 /mnt/t; mkfifo -m 666 /mnt/t/go
	`

func TestOrphansAreCutOff(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		r := w.run(t, orphaning+`
			$EXEC -- sh -c 'setsid sh -c "read x </mnt/t/go; $X probe cutoff" & exit 4' || echo status $?
			echo >/mnt/t/go`)
		if want := "status 4\ndial udp 10.96.0.10:53: connect: network is unreachable"; r.out != want {
			t.Errorf("got %q", r.out)
		}
		if r.err != "orphans: 1" {
			t.Errorf("said %q", r.err)
		}
	})
}

// afterProgram is an orphan that waits until the program has been reaped.
const afterProgram = `setsid sh -c "while kill -0 $$ 2>/dev/null; do :; done; `

func TestLinger(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		r := w.run(t, `$EXEC --linger --plugins -- sh -c '`+afterProgram+`getent ahostsv4 a.b | head -1" & exit 4' || echo status $?`)
		got := strings.Split(r.out, "\n")
		if len(got) != 3 || got[2] != "status 4" || !strings.Contains(r.out, meshAddr) || !strings.Contains(r.out, "plugins ran") || r.err != "" {
			t.Errorf("got %q, %q", r.out, r.err)
		}
	})
}

// TestLingerEnds: a signal that finds no program ends the waiting.
func TestLingerEnds(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		cmd, out := startJob(t, w, `exec $EXEC --linger -- sh -c '`+afterProgram+`echo alone; $X probe cutoff" & exit 4'`)
		expect(t, out, "alone")
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		expect(t, out, "dial udp 10.96.0.10:53: connect: network is unreachable")
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 4 {
			t.Errorf("ended with %v", cmd.ProcessState)
		}
	})
}

// TestOrphansOfALongProgram: under linger those that die while the program lives
// must not stay zombies.
func TestOrphansOfALongProgram(t *testing.T) {
	inWorlds(t, func(t *testing.T, w world) {
		got := w.ok(t, `$EXEC --linger -- sh -c '
			for i in 1 2 3; do sh -c "setsid true & :"; done
			while ps -o stat= --ppid $PPID | grep -q Z; do :; done
			echo reaped'`)
		if got != "reaped" {
			t.Errorf("got %q", got)
		}
	})
}
