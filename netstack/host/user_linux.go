// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An account is a user to run the program as, and what a login would tell it.
type account struct {
	login login
	name  string
	home  string
	shell string
}

// lookupUser finds a user by name or number. A number that the system has no
// name for is taken as it is, as container images often want, with a group of the
// same number and no others.
func lookupUser(who string) (*account, error) {
	u, err := user.Lookup(who)
	if uid, bad := strconv.ParseUint(who, 10, 31); err != nil && bad == nil {
		u, err = user.LookupId(who)
		if err != nil {
			return &account{login: login{UID: int(uid), GID: int(uid), Groups: []int{}}, name: who, home: "/", shell: "/bin/sh"}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	a := &account{name: u.Username, home: u.HomeDir, shell: shellOf(u.Username)}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of %s: %w", who, err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	a.login = login{UID: uid, GID: gid, Groups: make([]int, 0, len(ids))}
	for _, id := range ids {
		g, err := strconv.Atoi(id)
		if err != nil {
			return nil, err
		}
		a.login.Groups = append(a.login.Groups, g)
	}
	return a, nil
}

// shellOf reads the shell, which os/user leaves out.
func shellOf(name string) string {
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return "/bin/sh"
	}
	for line := range bytes.Lines(text) {
		f := strings.Split(strings.TrimRight(string(line), "\n"), ":")
		if len(f) == 7 && f[0] == name && f[6] != "" {
			return f[6]
		}
	}
	return "/bin/sh"
}

// environ returns env as a login of the account would have it.
func (a *account) environ(env []string) []string {
	runtime := "/run/user/" + strconv.Itoa(a.login.UID)
	var st unix.Stat_t
	if unix.Stat(runtime, &st) != nil || int(st.Uid) != a.login.UID {
		runtime = "" // the caller's would be another user's
	}
	for _, kv := range [][2]string{
		{"HOME", a.home}, {"USER", a.name}, {"LOGNAME", a.name}, {"SHELL", a.shell}, {"XDG_RUNTIME_DIR", runtime},
	} {
		env = setEnv(env, kv[0], kv[1])
	}
	return env
}

// sudoHint tells who came by sudo that the program runs as root.
func sudoHint(cfg *ExecConfig) []string {
	who, ok := getEnv(cfg.Env, "SUDO_USER")
	if !ok || who == "root" || cfg.User != "" || os.Geteuid() != 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s runs as root; --user %s runs it as you", cfg.Args[0], who)}
}
