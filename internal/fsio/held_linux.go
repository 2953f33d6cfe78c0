package fsio

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// LockHeld looks for the lock in the kernel's list, which has a line for each:
//
//	1: FLOCK  ADVISORY  WRITE 4711 fd:01:1835012 0 EOF
//
// The device is not compared: some file systems tell stat another one.
func (osFS) LockHeld(name string) (held, known bool) {
	info, err := os.Lstat(name)
	if err != nil {
		return false, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false, false
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return false, false
	}
	defer f.Close()
	inode := ":" + strconv.FormatUint(uint64(st.Ino), 10)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) >= 6 && w[1] == "FLOCK" && w[3] == "WRITE" && strings.HasSuffix(w[5], inode) {
			return true, true
		}
	}
	return false, lines.Err() == nil
}
