// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// stopSettle is how long a stop must last before we follow it. A Ctrl-Z stops the
// whole group and fg continues it, one process after the other: a stop seen within
// that is not one of the program's alone.
const stopSettle = 20 * time.Millisecond

// orphanGrace is how long a dead child that is not the program's is left to whoever
// started it. os/exec reaps at once; orphans are in no hurry.
const orphanGrace = time.Second

// followStop stops us as the program stopped, so that `suspend` in an inner shell
// gives the terminal back to the outer one, and continues the program after us.
// After Ctrl-Z there is nothing to do: the terminal told the group, us included.
func (c *child) followStop() {
	settle := time.NewTimer(stopSettle)
	<-settle.C
	if state, _, ok := procStat(c.pid); !ok || state != 'T' {
		return
	}
	// To this thread, which then stands still on return from the call: sent to the
	// process, another thread might take it while this one goes on.
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	_ = c.kill(unix.SIGCONT)
}

// reapOrphans takes in, as the subreaper that we are, what the program leaves
// behind, until the program has ended and no child is left, or stopLingering.
//
// Children of others in this process, as the plugins of a kubeconfig are, belong to
// those who started them, and nothing tells them from orphans: so one is reaped only
// when it has been dead for a while.
func (c *child) reapOrphans() {
	defer close(c.done)
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	ended := c.ended
	var (
		seen    map[int]bool     // the dead children when the grace began
		expired <-chan time.Time // the grace is over
		dead    map[int]bool     // seen, after the grace
	)
	for {
		living, zombies := c.orphans(dead)
		if ended == nil && living+len(zombies) == 0 {
			return
		}
		dead = nil
		if expired == nil && len(zombies) > 0 {
			seen, expired = zombies, time.NewTimer(orphanGrace).C
		}
		select {
		case <-c.stop:
			return
		case <-ended:
			ended = nil
		case <-died:
		case <-expired:
			dead, expired = seen, nil
		}
	}
}

// orphans looks at our children besides the program and reaps those in dead. It
// returns how many live, and which are dead and not reaped.
func (c *child) orphans(dead map[int]bool) (living int, zombies map[int]bool) {
	zombies = make(map[int]bool)
	for _, pid := range children(os.Getpid()) {
		state, _, ok := procStat(pid)
		switch {
		case !ok || c.is(pid):
		case state != 'Z':
			living++
		case dead[pid]:
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		default:
			zombies[pid] = true
		}
	}
	return living, zombies
}

// children returns the processes whose parent is pid.
func children(pid int) []int {
	var list []int
	for _, p := range processes() {
		if _, parent, ok := procStat(p); ok && parent == pid {
			list = append(list, p)
		}
	}
	return list
}

// processes returns the numbers of all processes that /proc shows.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var list []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// procStat returns state and parent of a process. The name before them may hold
// anything, spaces and brackets too.
func procStat(pid int) (state byte, parent int, ok bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	f := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(f) < 2 || len(f[0]) != 1 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(f[1]))
	return f[0][0], parent, err == nil
}

// An nsID names a network namespace. It stays true while a descriptor of ours
// keeps the namespace alive.
type nsID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// netnsOf returns the network namespace of a process, by number or "self".
func netnsOf(pid string) (nsID, error) {
	var st unix.Stat_t
	path := "/proc/" + pid + "/ns/net"
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return nsID{uint64(st.Dev), st.Ino}, nil
}

// count returns how many processes live in the namespace, as far as we may see.
func (id nsID) count() int {
	if id == (nsID{}) {
		return 0
	}
	n := 0
	for _, pid := range processes() {
		if got, err := netnsOf(strconv.Itoa(pid)); err == nil && got == id {
			n++
		}
	}
	return n
}
