// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

// insideResolved says to this binary that it is in the world made below.
const insideResolved = "NASP_TUN_TEST_RESOLVED"

// resolvedWorld makes a host with the real dbus-daemon and systemd-resolved, that have
// nothing to do with those of this machine: a root of its own, whose changes are in
// memory, and an uplink to a small internet with a DNS server.
const resolvedWorld = `
mount -t tmpfs none /mnt
mkdir -p /mnt/up/etc /mnt/work /mnt/root
cp -a "$RESOLVED"/. /mnt/up/
cp "$EXE" /mnt/up/x
for f in passwd group; do cp /etc/$f /mnt/up/etc/$f; done
grep -q ^systemd-resolve: /mnt/up/etc/passwd || echo systemd-resolve:x:990:990::/:/usr/sbin/nologin >>/mnt/up/etc/passwd
grep -q ^systemd-resolve: /mnt/up/etc/group || echo systemd-resolve:x:990: >>/mnt/up/etc/group
{ grep -v ^hosts: /etc/nsswitch.conf; echo 'hosts: files resolve [!UNAVAIL=return] dns'; } >/mnt/up/etc/nsswitch.conf
ln -s ../run/systemd/resolve/stub-resolv.conf /mnt/up/etc/resolv.conf
mount -t overlay none -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc none proc
mount --rbind /dev dev
mount -t sysfs none sys
mount -t tmpfs none run
mkdir -p run/dbus run/systemd/resolve
chown systemd-resolve: run/systemd/resolve 2>/dev/null || chown 990:990 run/systemd/resolve
pivot_root . mnt
umount -l /mnt
cd /
ip link set lo up
ip link add up0 type veth peer name up0p
unshare -n /x internet &
internet=$!
until ! [ /proc/self/ns/net -ef /proc/$internet/ns/net ]; do :; done
ip link set up0p netns $internet
nsenter -t $internet -n sh -c 'ip link set lo up; ip addr add 192.0.2.53/24 dev up0p; ip link set up0p up'
ip link set up0 addrgenmode none up
ip addr add 192.0.2.2/24 dev up0
ip route add default via 192.0.2.53
dbus-daemon --system --nofork --nopidfile 2>/dev/null &
until test -S /run/dbus/system_bus_socket; do :; done
while :; do SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=err /usr/lib/systemd/systemd-resolved 2>/dev/null || :; done &
until resolvectl status >/dev/null 2>&1; do :; done
resolvectl dns up0 192.0.2.53
resolvectl default-route up0 yes
resolvectl domain up0 '~lab'
` + insideResolved + `=1 /x -test.run '^TestResolved$' -test.v
`

func TestResolved(t *testing.T) {
	needRoot(t)
	if os.Getenv(insideResolved) != "" {
		resolvedLife(t)
		return
	}
	dir, err := filepath.Abs("../../.cache/resolved")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "usr/lib/systemd/systemd-resolved"))
	}
	if err != nil {
		if os.Getenv("NASP_TUN_NETNS") == "require" {
			t.Fatalf("no systemd-resolved, see scripts/setup.sh: %v", err)
		}
		t.Skipf("no systemd-resolved, see scripts/setup.sh: %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", "mount --make-rprivate /\n"+resolvedWorld)
	cmd.Env = append(os.Environ(), "EXE="+exe, "RESOLVED="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID}
	r := runCmd(t, cmd)
	if r.status != 0 || !strings.Contains(r.out, "PASS: TestResolved") {
		t.Errorf("ended with %v\n%s\n%s", exitWords(r.status), r.out, r.err)
	}
}

// internet is the DNS of everybody else.
func internet([]string) int {
	c, err := net.ListenPacket("udp4", "0.0.0.0:53")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	err = (&mdns.Server{PacketConn: c, Handler: answers(map[string]string{
		"www.example.com.": "198.51.100.1", "web.dev.": "198.51.100.2", "echo.dev.": "198.51.100.3", "plain.testing.": "198.51.100.4",
	}, nil)}).ActivateAndServe()
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// answers serves A records; of other names it asks next, or says that there are none.
func answers(names map[string]string, next func(*mdns.Msg) *mdns.Msg) mdns.Handler {
	return mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(o.UDPSize(), false)
		}
		a, known := names[strings.ToLower(q.Question[0].Name)]
		switch {
		case known && q.Question[0].Qtype == mdns.TypeA:
			rr, err := mdns.NewRR(q.Question[0].Name + " 5 IN A " + a)
			if err != nil {
				return
			}
			m.Answer = append(m.Answer, rr)
		case known:
		case next != nil:
			m = next(q)
		default:
			m.Rcode = mdns.RcodeNameError
		}
		if m != nil {
			_ = w.WriteMsg(m)
		}
	})
}

// meshNames are those of our own server.
var meshNames = map[string]string{"echo.testing.": "10.96.0.10", "echo.dev.svc.": "10.96.0.11", "echo.dev.svc.cluster.local.": "10.96.0.11"}

// ourServer answers names of the mesh, and asks the host's servers for the others.
func ourServer(t *testing.T, upstream func() []netip.AddrPort) netip.AddrPort {
	t.Helper()
	d := Dialer{Mark: MarkOwn}
	return serveNames(t, "127.0.0.1:5454", answers(meshNames, func(q *mdns.Msg) *mdns.Msg {
		for _, server := range upstream() {
			conn, err := d.DialContext(context.Background(), "udp", server.String())
			if err != nil {
				continue
			}
			defer conn.Close()
			if m, _, err := new(mdns.Client).ExchangeWithConn(q, &mdns.Conn{Conn: conn}); err == nil {
				return m
			}
		}
		return nil
	}))
}

// serveNames serves DNS until the test ends.
func serveNames(t *testing.T, address string, h mdns.Handler) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &mdns.Server{PacketConn: c, Handler: h}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.ActivateAndServe() })
	t.Cleanup(func() { _ = s.Shutdown(); wg.Wait() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// lookUp asks as programs do: by glibc, and by the stub of resolv.conf.
func lookUp(t *testing.T, name string) string {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), "getent", "ahostsv4", name).Output()
	nss, _, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	var stub string
	if list, err := (&net.Resolver{PreferGo: true}).LookupNetIP(t.Context(), "ip4", name+"."); err == nil {
		stub = list[0].Unmap().String()
	}
	if nss != stub {
		t.Errorf("%s is %q by glibc and %q by the stub", name, nss, stub)
	}
	return nss
}

// A logWaiter waits for words in the log.
type logWaiter chan string

func (l logWaiter) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

func (l logWaiter) wait(t *testing.T, words string) {
	t.Helper()
	for {
		select {
		case line := <-l:
			if strings.Contains(line, words) {
				return
			}
		case <-t.Context().Done():
			t.Fatalf("the log never says %q", words)
		}
	}
}

func resolvedState(t *testing.T) []string {
	t.Helper()
	return append(hostState(t), sh(t, "resolvectl dns; resolvectl domain; resolvectl default-route; ls /run/systemd/resolve/netif"))
}

func resolvedLife(t *testing.T) {
	outside := func(echo string) {
		t.Helper()
		for name, want := range map[string]string{
			"www.example.com": "198.51.100.1", "web.dev": "198.51.100.2", "echo.dev": "198.51.100.3", "plain.testing": "198.51.100.4",
			"nobody.testing": "", "echo.testing": echo,
		} {
			if got := lookUp(t, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
	outside("")
	before := resolvedState(t)
	c := openTestCapture(t, CaptureConfig{})
	if err := c.Apply(addrs("10.96.0.10", "10.96.0.11")); err != nil {
		t.Fatal(err)
	}
	var dns atomic.Pointer[DNS] // our server answers before the resolver is told of it
	server := ourServer(t, func() []netip.AddrPort { return dns.Load().Upstream() })
	logged := make(logWaiter, 1000)
	d, err := OpenDNS(t.Context(), DNSConfig{State: c.state, Index: c.Index(), Server: server, Logger: slog.New(slog.NewTextHandler(logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	dns.Store(d)
	if mode, warning := d.Mode(); mode != DNSResolved || warning != "" {
		t.Errorf("mode %s, %s", mode, warning)
	}
	if got := d.Upstream(); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}) {
		t.Errorf("the host's servers are %v", got)
	}
	taken, err := d.Taken(t.Context())
	if err != nil || !slices.Equal(taken, []string{"lab"}) {
		t.Errorf("others have %q, %v", taken, err)
	}
	names := Names{Taken: taken, Services: services("echo.dev echo.testing a.lab")}
	for _, n := range numbered(300, "s%d") {
		names.Services = append(names.Services, ServiceName{n, "testing"})
	}
	claims, left := Claims(names)
	if len(left) != 2 { // dev and lab
		t.Errorf("left: %v", left)
	}
	if err := d.Claim(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	mesh := func() {
		t.Helper()
		outside("10.96.0.10")
		for _, name := range []string{"echo.dev.svc", "echo.dev.svc.cluster.local"} {
			if got := lookUp(t, name); got != "10.96.0.11" {
				t.Errorf("%s is %q", name, got)
			}
		}
		if err := d.Prove(t.Context(), "echo.testing", addrs("10.96.0.10")); err != nil {
			t.Error(err)
		}
	}
	mesh()
	var proof *ProofError
	if err := d.Prove(t.Context(), "www.example.com", addrs("10.96.0.10")); !errors.As(err, &proof) || proof.Got != "is 198.51.100.1" {
		t.Errorf("got %v", err)
	}

	// As many as it takes; one more is refused, and what stood still stands.
	var full []Claim
	for _, n := range append([]string{"cluster.local", "svc", "testing"}, numbered(maxDomains-3, "n%d.example")...) {
		full = append(full, Claim{Domain: n})
	}
	if err := d.Claim(t.Context(), full); err != nil {
		t.Error(err)
	}
	if err := d.Claim(t.Context(), append(full, Claim{Domain: "x.example"})); err == nil {
		t.Error("257 domains were accepted")
	}
	mesh()

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	sh(t, `for p in $(grep -l '^systemd-resolve$' /proc/[0-9]*/comm); do p=${p#/proc/}; kill -9 ${p%/comm}; done`)
	logged.wait(t, "is back, and knows our domains")
	sh(t, "resolvectl dns up0 192.0.2.53; resolvectl default-route up0 yes; resolvectl domain up0 '~lab'")
	mesh()
	stop()
	wg.Wait()

	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	outside("")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for slices.ContainsFunc(resolvedState(t), func(s string) bool { return strings.Contains(s, "nasp0") }) {
		// The resolver hears of the device's end by itself.
	}
	if diff := cmp.Diff(before, resolvedState(t)); diff != "" {
		t.Errorf("the host is not as before (-before +after):\n%s", diff)
	}
}
