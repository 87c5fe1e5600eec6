// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nasp-tun/nasp-tun/mesh/minimesh"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

func (a *app) demoCommand() *cobra.Command {
	var serve bool
	cmd := &cobra.Command{
		Use:   "demo [flags] [-- CMD [ARGS]]",
		Short: "See it work: a mesh inside this process, and curl through it",
		Long: `Demo starts a small mesh inside this process: istiod with its certificate
authority, Heimdall, and the service echo.testing, whose two workloads demand
mutual TLS. It then does what exec does, with this machine's own curl, and with
two programs that speak raw TCP and gRPC. No cluster and no network are needed.

With CMD it runs that instead, and ends as CMD ends. With --serve it stays up and
prints the command that joins its mesh from another terminal.`,
		Example: `  nasp-tun demo
  nasp-tun demo -- python3 -c 'import urllib.request as u; print(u.urlopen("http://echo.testing").read().decode())'
  nasp-tun demo --serve`,
		GroupID: "run",
		Args:    cobra.ArbitraryArgs,
	}
	cmd.Flags().SetInterspersed(false)
	return a.verb(cmd, func(cmd *cobra.Command, args []string) error {
		switch {
		case serve && len(args) > 0:
			return usagef("--serve runs no CMD: join from another terminal")
		case serve:
			return a.demoServe(cmd.Context())
		case len(args) > 0:
			return a.demoRun(cmd.Context(), args)
		}
		return a.demoTour(cmd.Context())
	}, func(_ *Config, fs *pflag.FlagSet) {
		fs.BoolVar(&serve, "serve", false, "stay up and print the command that joins from another terminal")
	}, execFlags, observeFlags)
}

// A demoMesh is the embedded mesh with Heimdall in front, and the files that
// another nasp-tun needs to enrol there.
type demoMesh struct {
	mesh     *minimesh.Mesh
	heimdall *demoHeimdall
	dir      string // 0700; holds the CA file and the token
	caught   <-chan os.Signal
}

// startDemo starts everything on loopback. The returned function ends it and
// removes the files.
func startDemo(ctx context.Context, cfg minimesh.Config, logs *logs) (d *demoMesh, stop func(), err error) {
	d = new(demoMesh)
	var undo []func()
	stop = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	cfg.Logger = logs.logger.With("component", "minimesh")
	d.mesh, err = minimesh.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	if err := d.mesh.Start(); err != nil {
		return nil, nil, err
	}
	undo = append(undo, d.mesh.Close)
	d.heimdall, err = startDemoHeimdall(ctx, d.mesh, logs.logger)
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, d.heimdall.stop)
	d.dir, err = os.MkdirTemp("", "nasp-tun-demo-") // 0700
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() { _ = os.RemoveAll(d.dir) })
	for path, text := range map[string][]byte{d.caFile(): d.mesh.RootPEM(), d.tokenFile(): []byte(d.heimdall.token + "\n")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, nil, err
		}
	}
	return d, stop, nil
}

func (d *demoMesh) caFile() string    { return filepath.Join(d.dir, "ca.pem") }
func (d *demoMesh) tokenFile() string { return filepath.Join(d.dir, "token") }

// enrolment is how exec would be told of this mesh.
func (d *demoMesh) enrolment() EnrolConfig {
	return EnrolConfig{Heimdall: d.heimdall.url, HeimdallCA: d.caFile(), TokenFile: d.tokenFile()}
}

// command is the exec command that does what demo does.
func (d *demoMesh) command(program string) string {
	return fmt.Sprintf("%s exec --heimdall %s --heimdall-ca %s --token-file %s --",
		program, d.heimdall.url, d.caFile(), d.tokenFile())
}

// through runs one program in the demo's mesh, as exec would.
func (a *app) through(ctx context.Context, d *demoMesh, args []string) error {
	cfg := a.cfg
	cfg.Enrol = d.enrolment()
	return a.runTunnel(ctx, &cfg, args)
}

// withDemo runs something beside the demo's mesh. A signal that comes while no
// CMD is there to take it ends the demo afterwards, so that its files are
// removed first.
func (a *app) withDemo(ctx context.Context, use func(*demoMesh) error) error {
	caught := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) { // as under nohup
			signal.Notify(caught, sig)
		}
	}
	defer signal.Stop(caught)
	logs, err := openLogs(&a.cfg.Observe, a.stderr)
	if err != nil {
		return err
	}
	defer logs.close()
	d, stop, err := startDemo(ctx, minimesh.Config{}, logs)
	if err != nil {
		return err
	}
	defer stop()
	d.caught = caught
	return use(d)
}

// interrupted returns the signal that came, as an end of this program.
func (d *demoMesh) interrupted() error {
	select {
	case sig := <-d.caught:
		if s, ok := sig.(syscall.Signal); ok {
			return &exitError{status: host.ExitStatus{Signal: s}}
		}
	default:
	}
	return nil
}

// demoRun runs CMD in place of the tour.
func (a *app) demoRun(ctx context.Context, args []string) error {
	return a.withDemo(ctx, func(d *demoMesh) error { return a.through(ctx, d, args) })
}

// demoServe keeps the mesh up for other terminals until it is interrupted.
func (a *app) demoServe(ctx context.Context) error {
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	logs, err := openLogs(&a.cfg.Observe, a.stderr)
	if err != nil {
		return err
	}
	defer logs.close()
	d, stop, err := startDemo(ctx, minimesh.Config{}, logs)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Fprintf(a.stdout, `A mesh is up: istiod at %s, Heimdall at %s,
and the service echo.testing (80 HTTP, 9000 TCP, 7070 gRPC). Join it from another
terminal with

  %s curl -sS http://echo.testing

Ctrl-C ends it.
`, d.mesh.IstiodAddr(), d.heimdall.url, d.command(program()))
	<-ctx.Done()
	return nil
}

// program is how a shell finds this binary.
func program() string {
	path, err := os.Executable()
	if err != nil {
		return "nasp-tun"
	}
	return path
}

// errNoCurl is a machine without the program that the tour shows.
var errNoCurl = errors.New("this machine has no curl, which the demo shows unchanged")

// demoTour is what a newcomer sees: three programs, one after the other, each in
// a tunnel of its own.
func (a *app) demoTour(ctx context.Context) error {
	curl, err := exec.LookPath("curl")
	if err != nil {
		return errNoCurl
	}
	return a.withDemo(ctx, func(d *demoMesh) error {
		fmt.Fprintf(a.stdout, "A small mesh runs inside this process: istiod at %s, Heimdall at\n%s, and two workloads of echo.testing that demand mutual TLS.\n",
			d.mesh.IstiodAddr(), d.heimdall.url)
		for _, show := range []struct {
			title string
			args  []string
		}{
			{"HTTP, by this machine's own curl", []string{curl, "-sS", "http://echo.testing"}},
			{"raw TCP, by a program that opens a socket", []string{program(), demoClientVerb, "tcp", "echo.testing:9000"}},
			{"gRPC, by a program that knows no mesh", []string{program(), demoClientVerb, "grpc", "echo.testing:7070"}},
		} {
			if err := d.interrupted(); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "\n# %s\n$ nasp-tun exec ... -- %s\n", show.title, shown(show.args))
			if err := a.through(ctx, d, show.args); failed(err) {
				return demoFailure(show.args[0], err)
			}
		}
		writeTourEnd(a.stdout, d)
		return nil
	})
}

// shown is a command as a person would have typed it.
func shown(args []string) string {
	return strings.Join(append([]string{filepath.Base(args[0])}, args[1:]...), " ")
}

// failed reports whether a run ended otherwise than with status 0.
func failed(err error) bool {
	var exit *exitError
	return !errors.As(err, &exit) || exit.err != nil || exit.status.ShellCode() != 0
}

// demoFailure says that the program itself failed; what failed before it is said
// by err.
func demoFailure(program string, err error) error {
	var exit *exitError
	if !errors.As(err, &exit) || exit.err != nil {
		return err
	}
	if exit.status.Signal != 0 {
		return exit // interrupted: end likewise
	}
	return fmt.Errorf("%s ended with status %d", filepath.Base(program), exit.status.Code)
}

func writeTourEnd(w io.Writer, d *demoMesh) {
	fmt.Fprintf(w, `
# What just happened, three times
1. Heimdall took a token and answered with the laptop's place in the mesh. istiod
   signed a certificate for %s
   and sent the mesh's configuration over one ADS stream.
2. The program got a network of its own, with a TUN as its only way out. It asked
   DNS for echo.testing and was given %s, an address of the mesh.
3. Its packets entered the TUN, became a connection again in a user-space network
   stack, and left it as TLS 1.3 to %s, whose certificate had to be
   %s. The x-forwarded-client-cert above
   is what that workload saw of the laptop.

Next: nasp-tun demo -- ANY PROGRAM and, while it runs, from another terminal
nasp-tun status, nasp-tun services, nasp-tun explain echo.testing.
`, d.mesh.SPIFFE(demoNamespace, demoAccount), join(d.mesh.VIPs("echo", "testing")),
		join(d.mesh.Endpoints("echo", "testing", 80)), d.mesh.SPIFFE("testing", "default"))
}

// join prints values with "or" between them.
func join[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.String()
	}
	return strings.Join(texts, " or ")
}
