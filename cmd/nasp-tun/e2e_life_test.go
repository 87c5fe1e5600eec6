// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
)

// An open flow of a held session passes lines to an echo service and back.
type openFlow struct {
	h    *held
	fd   int
	said int
}

func (h *held) open(t *testing.T, fd int, host string, port int) *openFlow {
	t.Helper()
	h.do(t, fmt.Sprintf("exec %d<>/dev/tcp/%s/%d", fd, host, port))
	f := &openFlow{h: h, fd: fd}
	f.say(t)
	return f
}

func (f *openFlow) say(t *testing.T) {
	t.Helper()
	f.said++
	want := fmt.Sprintf("line %d of %d", f.said, f.fd)
	if got := f.h.do(t, fmt.Sprintf("echo %s >&%d; read -r x <&%d; echo $x", want, f.fd, f.fd)); got != want+"\n" {
		t.Fatalf("a live flow: got %q, want %q", got, want)
	}
}

// The control plane is not in the way of traffic: old flows and new ones do
// without it for as long as nothing changes.
func TestIstiodAwayForAMinuteLosesNoFlow(t *testing.T) {
	away := time.Minute
	if testing.Short() {
		away = 3 * time.Second
	}
	l := newLab(t, minimesh.Config{})
	h := hold(t, l)
	var flows []*openFlow
	for fd := 3; fd < 7; fd++ {
		flows = append(flows, h.open(t, fd, "echo.testing", 9000))
	}
	l.mesh.StopIstiod()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(away); time.Now().Before(end); <-tick.C {
		for _, f := range flows {
			f.say(t)
		}
		if out := h.do(t, "curl -sS http://echo.testing"); !strings.Contains(out, "URI="+demoIdentity) {
			t.Fatalf("a new request: %q", out)
		}
	}
	if err := l.mesh.StartIstiod(); err != nil {
		t.Fatal(err)
	}
	if err := l.mesh.WaitSynced(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		f.say(t)
	}
}

// A new certificate is for new connections; those that are open keep theirs.
func TestCertificateRotatesUnderLiveFlows(t *testing.T) {
	l := newLab(t, minimesh.Config{CertTTL: 8 * time.Second})
	h := hold(t, l)
	f := h.open(t, 3, "echo.testing", 9000)
	first := l.mesh.Signed()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for l.mesh.Signed() < first+3 {
		<-tick.C
		f.say(t)
		if out := h.do(t, "curl -sS http://echo.testing"); !strings.Contains(out, "URI="+demoIdentity) {
			t.Fatalf("a new request: %q", out)
		}
	}
	f.say(t)
}

func TestGigabyteEachWayWithHalfClose(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	needRoot(t)
	program := buildStatic(t, "./testdata/bulk")
	l := newLab(t, minimesh.Config{Services: []minimesh.Service{{
		Name: "bulk", Namespace: "testing",
		Ports: []minimesh.Port{
			{Number: 7001, Protocol: minimesh.TCP, App: minimesh.Sink},
			{Number: 7002, Protocol: minimesh.TCP, App: minimesh.Source},
		},
	}}})
	r := finish(t, l.naspTun(t, append(l.enrolled(), "--", program, "up", "bulk.testing:7001", fmt.Sprint(size))...))
	r.want(t, 0)
	sent, got, _ := strings.Cut(r.out, "\n")
	if strings.TrimPrefix(sent, "sent ") != strings.TrimSpace(strings.TrimPrefix(got, "got ")) {
		t.Errorf("up: %s", r.out)
	}
	r = finish(t, l.naspTun(t, append(l.enrolled(), "--", program, "down", "bulk.testing:7002", fmt.Sprint(size))...))
	sum := sha256.New()
	if _, err := io.Copy(sum, minimesh.Pattern(size)); err != nil {
		t.Fatal(err)
	}
	r.want(t, 0, fmt.Sprintf("%d %x\n", size, sum.Sum(nil)))
}

func TestIPv6AndDualStackServices(t *testing.T) {
	ports := []minimesh.Port{{Number: 80, Protocol: minimesh.HTTP}, {Number: 9000, Protocol: minimesh.TCP}}
	l := newLab(t, minimesh.Config{Services: []minimesh.Service{
		{Name: "six", Namespace: "testing", VIPs: []netip.Addr{netip.MustParseAddr("fd00:10:96::6")}, Ports: ports},
		{Name: "both", Namespace: "testing", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.46"), netip.MustParseAddr("fd00:10:96::46")}, Ports: ports},
	}})
	h := hold(t, l)
	for _, c := range []struct{ family, host string }{{"", "six"}, {"-6", "six"}, {"-4", "both"}, {"-6", "both"}} {
		if out := h.do(t, "curl -sS "+c.family+" http://"+c.host+".testing/"); !strings.Contains(out, "URI="+demoIdentity) {
			t.Errorf("curl %s %s.testing: %q", c.family, c.host, out)
		}
	}
	const noSuchHost = "6\n"
	if out := h.do(t, "curl -s -4 http://six.testing/; echo $?"); out != noSuchHost {
		t.Errorf("a v6-only service by IPv4: %q", out)
	}
	h.open(t, 3, "six.testing", 9000)
}
