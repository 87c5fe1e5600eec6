// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/nasp-tun/nasp-tun/scripts/lab/cluster"
)

// traffic asks again and again until its standard input ends, and counts.
const traffic = `
ok=0; bad=0
while :; do
  read -t 0.02 line
  [ $? -gt 128 ] || break
  if curl -sS --fail -m 10 -o /dev/null http://echo.testing; then ok=$((ok+1)); else bad=$((bad+1)); fi
done
echo "ok=$ok bad=$bad"`

// A load is a program that makes traffic in a session until it is told to end.
type load struct {
	t         *testing.T
	cmd       *exec.Cmd
	in        io.Closer
	out, errs bytes.Buffer
}

func (s *session) load() *load {
	s.t.Helper()
	l := &load{t: s.t, cmd: s.command("bash", "-c", traffic)}
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.errs
	var err error
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// end ends the load and returns how many requests were answered, and how many
// were not.
func (l *load) end() (ok, bad int) {
	l.t.Helper()
	l.in.Close()
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatalf("%v\n%s", err, l.errs.String())
	}
	if _, err := fmt.Sscanf(l.out.String(), "ok=%d bad=%d", &ok, &bad); err != nil {
		l.t.Fatalf("%v: %s", err, l.out.String())
	}
	l.t.Logf("%d requests answered, %d not\n%s", ok, bad, l.errs.String())
	return ok, bad
}

// While istiod is away the last configuration stands, and it is taken up
// again without a word to the program.
func TestIstiodRestartsUnderTraffic(t *testing.T) {
	s := open(t, "test-http")
	// Two of what must not notice: new requests, and an answer that goes on.
	l := s.load()
	stream := s.command("curl", "-sSN", "--fail", "http://echo.testing/stream?every=50ms&n=100")
	var events bytes.Buffer
	stream.Stdout, stream.Stderr = &events, &events
	if err := stream.Start(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Restart(t.Context(), cluster.IstiodMain); err != nil {
		t.Error(err)
	}
	var st struct {
		Mesh struct {
			Istiod struct {
				Connected  bool
				Reconnects int
				Pending    []string
			}
		}
	}
	i := &st.Mesh.Istiod
	eventually(t, "the stream to istiod to be back", func() error {
		s.askJSON(&st, "status")
		if !i.Connected || i.Reconnects == 0 || len(i.Pending) > 0 {
			return fmt.Errorf("got %+v", *i)
		}
		return nil
	})
	if err := stream.Wait(); err != nil || !strings.Contains(events.String(), "data: 100\n") {
		t.Errorf("the answer that went on was cut: %v, %s", err, events.String())
	}
	if ok, bad := l.end(); bad != 0 || ok == 0 {
		t.Errorf("%d requests failed, %d were answered", bad, ok)
	}
	s.run("curl", "-sS", "--fail", "http://echo.testing").want(t, 0, "URI="+identity("test-http"))
}

// burst makes many requests at once, so that each needs a connection of its
// own, and returns the status codes.
func (s *session) burst(requests int) []string {
	s.t.Helper()
	const script = `seq %d | xargs -P 40 -I{} curl -sS -m 20 -o /dev/null -w '%%{http_code}\n' 'http://echo.testing/delay/100ms?{}'`
	r := s.run("sh", "-c", fmt.Sprintf(script, requests))
	r.want(s.t, 0)
	return strings.Fields(r.out)
}

// The gateway goes on to lead every other connection to a pod whose sidecar
// is dead, since nobody tells it; each try is a connection. What fails is what
// fails with an Envoy: a request all of whose three tries went there.
func TestSidecarDiesAndComesBack(t *testing.T) {
	s := open(t, "test-http")
	if err := lab.Stop(t.Context(), cluster.AgentEchoV1); err != nil {
		t.Fatal(err)
	}
	const requests = 200
	codes := s.burst(requests)
	failed := 0
	for _, c := range codes {
		if c != "200" {
			failed++
		}
	}
	if err := lab.Start(t.Context(), cluster.AgentEchoV1); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d requests failed", failed, requests)
	if len(codes) != requests || failed > requests/3 {
		t.Errorf("%d of %d requests failed", failed, len(codes))
	}
	for _, line := range s.records() {
		if strings.Contains(line, "protocol=http") && !strings.Contains(line, "status=200") && !strings.Contains(line, "status=503 ") ||
			strings.Contains(line, "status=503") && !(strings.Contains(line, "tries=3") && strings.Contains(line, "flags=UF,URX")) {
			t.Errorf("failed otherwise: %s", line)
		}
	}
	eventually(t, "every request to be answered again", func() error {
		for _, c := range s.burst(40) {
			if c != "200" {
				return fmt.Errorf("status %s", c)
			}
		}
		return nil
	})
}
