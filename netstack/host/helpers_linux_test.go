// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// helpers are what this binary does in place of tests when its first argument says
// so.
var helpers = map[string]func(args []string) int{
	"mini-exec": miniExec,
	"probe":     probe,
	"mini-job":  miniJob,
	"mini-up":   miniUp,
	"internet":  internet,
}

// meshAddr is what the sink's resolver says to every question.
const meshAddr = "10.96.0.10"

// miniExec is a small `nasp-tun exec`: the real private network, and in place of the
// netstack a sink that answers DNS and drops all else.
func miniExec(args []string) int {
	flags := flag.NewFlagSet("mini-exec", flag.ContinueOnError)
	cfg := ExecConfig{Env: os.Environ()}
	flags.StringVar(&cfg.User, "user", "", "")
	flags.BoolVar(&cfg.Linger, "linger", false, "")
	flags.BoolVar(&cfg.IPv6, "ipv6", false, "")
	begin := flags.Bool("begin", false, "say so before anything is made")
	plugins := flags.Bool("plugins", false, "run other children after the program")
	hold := flags.Bool("hold", false, "say so, and never let the program run")
	routes6 := flags.String("routes6", "", "comma-separated: on, off, or mesh addresses")
	flags.Func("host-port", "", func(s string) error {
		port, err := strconv.ParseUint(s, 10, 16)
		cfg.HostPorts = append(cfg.HostPorts, uint16(port))
		return err
	})
	if err := flags.Parse(args); err != nil {
		return 2
	}
	cfg.Args = flags.Args()
	if *begin {
		fmt.Println("begin")
	}
	cfg.Resolv = NewResolvers("").Config()
	status, err := runMini(cfg, *hold, *plugins, *routes6)
	var failed *ExecError
	var interrupted *Interrupted
	switch {
	case errors.As(err, &interrupted):
		status = interrupted.Status()
	case errors.As(err, &failed):
		fmt.Fprintf(os.Stderr, "nasp-tun: exec: %v\n%s\n", failed, failed.Hint)
		return failed.Code
	case err != nil:
		fmt.Fprintln(os.Stderr, "nasp-tun: exec:", err)
		return ExitSetup
	}
	if status.Orphans > 0 {
		fmt.Fprintf(os.Stderr, "orphans: %d\n", status.Orphans)
	}
	status.Exit()
	return 0
}

func runMini(cfg ExecConfig, hold, plugins bool, routes6 string) (ExitStatus, error) {
	ctx := context.Background()
	e, err := StartExec(ctx, cfg)
	if err != nil {
		return ExitStatus{}, err
	}
	for _, w := range e.Warnings() {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	if err := setRoutes6(e, routes6); err != nil {
		return ExitStatus{}, err
	}
	var s sink
	s.run(e)
	if hold {
		fmt.Println("holding")
	} else if err := e.Start(ctx); err != nil {
		e.Close()
		return ExitStatus{}, err
	}
	if plugins {
		<-e.Done()
		for range 50 {
			if err := exec.Command("true").Run(); err != nil {
				return ExitStatus{}, err
			}
		}
		fmt.Println("plugins ran")
	}
	status := e.Wait()
	s.tun.Close()
	e.Close()
	s.wg.Wait()
	return status, nil
}

// setRoutes6 does what a changing host and mesh would.
func setRoutes6(e *Exec, steps string) error {
	var errs []error
	for step := range strings.SplitSeq(steps, ",") {
		switch step {
		case "":
		case "on", "off":
			errs = append(errs, e.SetIPv6(step == "on"))
		case "none":
			errs = append(errs, e.SetMesh6(nil))
		default:
			errs = append(errs, e.SetMesh6([]netip.Addr{netip.MustParseAddr(step), netip.MustParseAddr("10.0.0.1")}))
		}
	}
	return errors.Join(errs...)
}

// A sink takes the place of the netstack.
type sink struct {
	tun *os.File
	wg  sync.WaitGroup
}

func (s *sink) run(e *Exec) {
	d := e.Device()
	s.tun = os.NewFile(uintptr(d.FD), "tun")
	s.wg.Go(func() { s.packets(d.VnetHdr) })
	udp, tcp := e.Stubs()
	for _, c := range udp {
		s.wg.Go(func() { serveUDP(c) })
	}
	for _, l := range tcp {
		s.wg.Go(func() { serveTCP(l) })
	}
	for _, p := range e.HostPorts() {
		s.wg.Go(func() { relayPort(p) })
	}
}

// packets answers IPv4 UDP to port 53.
func (s *sink) packets(vnet bool) {
	b := make([]byte, 65536+10)
	for {
		n, err := s.tun.Read(b)
		if err != nil {
			return
		}
		off := 0
		if vnet {
			off = 10
		}
		if answer := answerPacket(b[off:n]); answer != nil {
			_, _ = s.tun.Write(append(make([]byte, off), answer...))
		}
	}
}

func answerPacket(p []byte) []byte {
	const ip, udp = 20, 8
	if len(p) < ip+udp || p[0] != 0x45 || p[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[ip+2:]) != 53 {
		return nil
	}
	answer := answerDNS(p[ip+udp:])
	if answer == nil {
		return nil
	}
	out := append([]byte(nil), p[:ip+udp]...)
	copy(out[12:], p[16:20])
	copy(out[16:], p[12:16])
	copy(out[ip:], p[ip+2:ip+4])
	copy(out[ip+2:], p[ip:ip+2])
	out = append(out, answer...)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	binary.BigEndian.PutUint16(out[ip+4:], uint16(udp+len(answer)))
	binary.BigEndian.PutUint16(out[ip+6:], 0) // none needed over IPv4
	binary.BigEndian.PutUint16(out[10:], 0)
	sum := uint32(0)
	for i := 0; i < ip; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(out[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(out[10:], ^uint16(sum))
	return out
}

// answerDNS says meshAddr for every A question, and nothing for others.
func answerDNS(q []byte) []byte {
	var m mdns.Msg
	if m.Unpack(q) != nil || len(m.Question) != 1 {
		return nil
	}
	r := new(mdns.Msg).SetReply(&m)
	if m.Question[0].Qtype == mdns.TypeA {
		rr, err := mdns.NewRR(m.Question[0].Name + " 5 IN A " + meshAddr)
		if err != nil {
			return nil
		}
		r.Answer = append(r.Answer, rr)
	}
	out, err := r.Pack()
	if err != nil {
		return nil
	}
	return out
}

func serveUDP(c net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if a := answerDNS(b[:n]); a != nil {
			_, _ = c.WriteTo(a, from)
		}
	}
}

func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 4096)
		if n, err := c.Read(b); err == nil && n > 2 {
			if a := answerDNS(b[2:n]); a != nil {
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
		}
		c.Close()
	}
}

// relayPort connects what arrives inside to the host's own loopback.
func relayPort(p HostPort) {
	for {
		in, err := p.Listener.Accept()
		if err != nil {
			return
		}
		var d Dialer
		out, err := d.DialContext(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", p.Port))
		if err == nil {
			_, _ = io.Copy(in, out)
			out.Close()
		}
		in.Close()
	}
}
