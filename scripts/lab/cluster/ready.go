// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// readyLimit is how long a part may take to come up, on a machine that
	// does much else.
	readyLimit = 90 * time.Second
	// logTail is how much of a log an error quotes.
	logTail = 2000
)

// readiness says where each part answers 200 when it is ready.
func readiness(name string) (netns, url string) {
	switch name {
	case Etcd:
		return Node, etcdURL + "/health"
	case IstiodMain:
		return Node, "http://127.0.0.1:8080/ready"
	case IstiodEnvoy:
		return Node, "http://127.0.0.1:8180/ready"
	case AgentEchoV1:
		return EchoV1, "http://127.0.0.1:15021/healthz/ready"
	case AgentEchoV2:
		return EchoV2, "http://127.0.0.1:15021/healthz/ready"
	case AgentGW:
		return Gateway, "http://127.0.0.1:15021/healthz/ready"
	case AppEchoV1:
		return EchoV1, "http://127.0.0.1:8080/"
	case AppEchoV2:
		return EchoV2, "http://127.0.0.1:8080/"
	}
	return "", ""
}

// awaitReady waits until a part answers. One that has ended is not waited for.
func (l *Lab) awaitReady(ctx context.Context, name string) error {
	err := Poll(ctx, readyLimit, name+" to be ready", func(ctx context.Context) error {
		if p := l.process(name); p == nil || !p.running() {
			return fmt.Errorf("%s is not running", name)
		}
		if name == APIServer {
			api, err := l.API()
			if err != nil {
				return err
			}
			return api.Do(ctx, http.MethodGet, "/readyz", "application/json", nil, nil)
		}
		netns, url := readiness(name)
		_, err := Fetch(ctx, netns, url)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, l.tail(name))
	}
	return nil
}

// Fetch reads a URL, whose host is an address, from inside a namespace.
func Fetch(ctx context.Context, netns, url string) (string, error) {
	t := &http.Transport{DialContext: DialIn(netns), DisableKeepAlives: true}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: t, Timeout: requestLimit}).Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %w", url, &StatusError{resp.StatusCode, strings.TrimSpace(string(b))})
	}
	return string(b), nil
}

// tail is the end of a process's log.
func (l *Lab) tail(name string) string {
	b, err := os.ReadFile(l.LogFile(name))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-logTail):])
}

// settle waits until the gateway has what makes traffic pass: without
// listeners it is ready and serves nobody.
func (l *Lab) settle(ctx context.Context) error {
	return Poll(ctx, readyLimit, "the gateway's listeners", func(ctx context.Context) error {
		for _, port := range []string{"15012", "15443"} {
			c, err := DialIn(Laptop)(ctx, "tcp", GatewayAddress+":"+port)
			if err != nil {
				return err
			}
			c.Close()
		}
		return nil
	})
}

// Down ends and removes all that the lab made. Logs stay until the next up.
func (l *Lab) Down(ctx context.Context) error {
	// The newest first: who depends ends before what it depends on.
	for _, p := range slices.Backward(l.state.Processes) {
		if err := p.stop(ctx); err != nil {
			return err
		}
	}
	if err := l.removeNetwork(ctx); err != nil {
		return err
	}
	l.state, l.api = state{}, nil
	if err := os.RemoveAll(l.run()); err != nil {
		return err
	}
	l.say("down")
	return nil
}

// Status tells of each part whether it is there, and whether all are.
func (l *Lab) Status(ctx context.Context) (text string, up bool) {
	var b strings.Builder
	up = len(l.state.Processes) > 0
	for _, n := range l.state.Namespaces {
		there := exists(netnsDir + "/" + n)
		up = up && there
		fmt.Fprintf(&b, "namespace  %-18s %s\n", n, word(there, "there", "gone"))
	}
	for _, p := range l.state.Processes {
		runs := p.running()
		up = up && runs
		fmt.Fprintf(&b, "process    %-18s %-10s pid %-8d %s\n", p.Name, word(runs, "running", "ended"), p.PID, l.LogFile(p.Name))
	}
	if len(l.state.Processes) == 0 {
		b.WriteString("the lab is not up\n")
	}
	return b.String(), up
}

func word(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}
