// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/nasp-tun/nasp-tun/heimdall"
	"github.com/nasp-tun/nasp-tun/mesh/identity"
	"github.com/nasp-tun/nasp-tun/netstack/host"
)

// Exit codes. They are part of the interface: classes of ten, so that a script
// can ask for the class. exitMeanings says what each means.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2

	exitConfig       = 20
	exitPermission   = 30
	exitControlPlane = 40
	exitEnrolment    = 41
	exitNotFound     = 50
	exitTUN          = 60
	exitRoute        = 61
	exitDNS          = 62
	exitIdentity     = 70
	exitNoSession    = 80
	exitManySessions = 81
	exitInterrupted  = 130

	exitSetUp         = host.ExitSetup
	exitNotExecutable = host.ExitNotExecutable
	exitCommandAbsent = host.ExitNotFound
)

// exitMeanings is the README's table.
var exitMeanings = []struct {
	code    int
	meaning string
}{
	{exitOK, "all is well"},
	{exitFailure, "anything that has no class of its own"},
	{exitUsage, "the command line is wrong"},
	{exitConfig, "a setting in the file or the environment is wrong, or one is missing"},
	{exitPermission, "this user may not do it here"},
	{exitControlPlane, "istiod cannot be reached, or sends no whole configuration"},
	{exitEnrolment, "Heimdall cannot be reached, or refuses"},
	{exitNotFound, "the mesh does not know what was asked for, or would refuse it"},
	{exitTUN, "the TUN cannot be opened"},
	{exitRoute, "addresses, routes or sockets inside cannot be made"},
	{exitDNS, "the resolver inside cannot be set"},
	{exitIdentity, "no identity: the token is refused or istiod's certificate is not trusted"},
	{exitNoSession, "no session runs"},
	{exitManySessions, "several sessions run and none was chosen"},
	{exitInterrupted, "interrupted"},
	{exitSetUp, "`exec`, `demo -- CMD`: CMD was not started; the reason is on standard error"},
	{exitNotExecutable, "`exec`, `demo -- CMD`: CMD cannot be executed"},
	{exitCommandAbsent, "`exec`, `demo -- CMD`: there is no such CMD"},
}

// A usageError is a command line that cannot be carried out.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// flagError makes a usageError of what pflag says, without the value that it
// would repeat: a URL can hold a password.
func flagError(err error) error {
	var bad *pflag.InvalidValueError
	if errors.As(err, &bad) {
		err = fmt.Errorf("--%s: %w", bad.GetFlag().Name, bad.Unwrap())
	}
	return &usageError{err}
}

// An exitError ends the program with a status of its own. With a nil err nothing
// is said: that is CMD's own end, or the answer of a question.
type exitError struct {
	status host.ExitStatus
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status.ShellCode())
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func exitCode(code int) error { return &exitError{status: host.ExitStatus{Code: code}} }

// report tells an error and, if the table has one, what to do about it, and
// returns the status to end with.
func report(w io.Writer, err error) host.ExitStatus {
	if err == nil {
		return host.ExitStatus{}
	}
	status, hint := host.ExitStatus{Code: exitFailure}, ""
	for _, p := range problems {
		if p.is(err) {
			status.Code = p.code
			if p.hint != nil {
				hint = p.hint(err)
			}
			break
		}
	}
	var exit *exitError
	if errors.As(err, &exit) {
		status = exit.status
		if exit.err == nil {
			return status
		}
	}
	fmt.Fprintf(w, "nasp-tun: %s\n", strings.TrimSpace(err.Error()))
	for line := range strings.SplitSeq(hint, "\n") {
		if line != "" {
			fmt.Fprintf(w, "nasp-tun: hint: %s\n", line)
		}
	}
	return status
}

// A problem is a kind of error that nasp-tun knows more about than its text.
type problem struct {
	is   func(error) bool
	code int
	hint func(error) string
}

// problems is searched from the top; the first that fits holds.
var problems = []problem{
	{is: as[*usageError], code: exitUsage, hint: always("nasp-tun help lists the verbs, nasp-tun VERB --help the flags")},
	{is: isErr(errNoMesh), code: exitConfig, hint: always(
		"--heimdall URL --token-file FILE enrols at Heimdall, --bundle DIR by the files of istioctl, --istiod HOST:PORT with --istiod-ca, --istio-token-file and --namespace by flags\n" +
			"nasp-tun demo needs no mesh")},
	{is: as[*configError], code: exitConfig, hint: always("nasp-tun config view shows each setting and its source")},
	{is: as[*noSessionError], code: exitNoSession, hint: always("start one: nasp-tun exec -- CMD")},
	{is: as[*manySessionsError], code: exitManySessions, hint: always("choose one with --session NAME or --session PID")},
	{is: isErr(errNotFound), code: exitNotFound},
	{is: isErr(errNoCurl), code: exitFailure, hint: always("install curl, or show another program: nasp-tun demo -- CMD")},

	// CMD's private network.
	{is: stage("tun"), code: exitTUN, hint: hostHint},
	{is: func(err error) bool { return as[*host.ExecError](err) && errors.Is(err, fs.ErrPermission) }, code: exitPermission, hint: hostHint},
	{is: stage("network", "sockets"), code: exitRoute, hint: hostHint},
	{is: stage("mounts"), code: exitDNS, hint: hostHint},
	{is: stage("namespaces", "user"), code: exitPermission, hint: hostHint},
	{is: as[*host.ExecError], code: exitFailure, hint: hostHint},

	// Heimdall.
	{is: isErr(heimdall.ErrUnauthorized), code: exitEnrolment, hint: always("the token of --token-file must be one that this Heimdall has given out: kubectl -n NAMESPACE get secret -l nasp.k8s.cisco.com/workloadgroup=NAME")},
	{is: isErr(heimdall.ErrUntrusted), code: exitEnrolment, hint: always("--heimdall-ca must hold the certificate that signed Heimdall's")},
	{is: as[*heimdall.Error], code: exitEnrolment, hint: func(err error) string {
		var h *heimdall.Error
		errors.As(err, &h)
		return "Heimdall must answer at " + h.URL
	}},

	// The control plane. What the CA or istiod says of us comes before how it
	// was reached.
	{is: as[x509.HostnameError], code: exitIdentity, hint: always(
		"--istiod-server-name must be a name of istiod's certificate, which is istiod.istio-system.svc unless a revision has its own")},
	{is: isErr(identity.ErrUntrusted), code: exitIdentity, hint: always(
		"the root certificates must be those of this mesh: kubectl -n istio-system get configmap istio-ca-root-cert -o jsonpath='{.data.root-cert\\.pem}'")},
	{is: isErr(identity.ErrTokenRefused), code: exitIdentity, hint: always(
		"istiod takes tokens of its cluster for the audience istio-ca: kubectl -n NAMESPACE create token SERVICE-ACCOUNT --audience istio-ca\n" +
			"and --cluster-id must be the cluster that knows the service account")},
	{is: isErr(identity.ErrNoToken), code: exitIdentity, hint: always("the token must be a file with one line that has not expired")},
	{is: isErr(identity.ErrForbidden), code: exitIdentity, hint: always("--namespace and --service-account must be those of the token")},
	{is: isErr(identity.ErrBadCertificate), code: exitIdentity},
	{is: as[*joinError], code: exitControlPlane, hint: func(err error) string {
		var j *joinError
		errors.As(err, &j)
		return "istiod, or a gateway that leads to it, must answer at " + j.address + " (port 15012 speaks TLS)"
	}},

	{is: isErr(context.Canceled), code: exitInterrupted},
	{is: isErr(fs.ErrPermission), code: exitPermission},
}

// stage reports whether CMD's private network failed at one of some stages.
func stage(names ...string) func(error) bool {
	return func(err error) bool {
		var e *host.ExecError
		return errors.As(err, &e) && slices.Contains(names, e.Stage)
	}
}

// hostHint is what package host knows to do about its refusal.
func hostHint(err error) string {
	var e *host.ExecError
	errors.As(err, &e)
	return e.Hint
}

// as reports whether an error is, or wraps, a T.
func as[T error](err error) bool {
	var t T
	return errors.As(err, &t)
}

func isErr(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func always(hint string) func(error) string {
	return func(error) string { return hint }
}
