package fsio

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	maxLinks   = 40  // symbolic links followed in one lookup
	maxNameLen = 255 // of one element of a path

	knownFlags = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREATE | os.O_EXCL | os.O_TRUNC
)

// lookup finds what name leads to: the directory that holds (or would hold) it, its
// name there, and the node, or nil if there is none. The root has no directory.
func (s *Sim) lookup(name string, followLast bool) (dir *node, base string, n *node, err error) {
	links := 0
	return s.lookupFrom(name, followLast, &links)
}

func (s *Sim) lookupFrom(name string, followLast bool, links *int) (dir *node, base string, n *node, err error) {
	if name == "" {
		return nil, "", nil, syscall.ENOENT
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, "", nil, syscall.EINVAL
	}
	rest := filepath.ToSlash(filepath.Clean("/" + name))[1:]
	n = s.root
	walked := "/"
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch {
		case n == nil:
			return nil, "", nil, syscall.ENOENT
		case !n.mode.IsDir():
			return nil, "", nil, syscall.ENOTDIR
		case len(part) > maxNameLen:
			return nil, "", nil, syscall.ENAMETOOLONG
		}
		dir, base, n = n, part, n.names[part]
		if n != nil && n.link != "" && (rest != "" || followLast) {
			if *links++; *links > maxLinks {
				return nil, "", nil, syscall.ELOOP
			}
			target := n.link
			if !filepath.IsAbs(target) {
				target = filepath.Join(walked, target)
			}
			if dir, base, n, err = s.lookupFrom(target, true, links); err != nil {
				return nil, "", nil, err
			}
		}
		walked = filepath.Join(walked, part)
	}
	return dir, base, n, nil
}

// mustFind is lookup of something that has to be there.
func (s *Sim) mustFind(name string, followLast bool) (*node, error) {
	_, _, n, err := s.lookup(name, followLast)
	if err == nil && n == nil {
		err = syscall.ENOENT
	}
	return n, err
}

// OpenFile implements [FS]. Flags other than O_RDONLY, O_WRONLY, O_RDWR, O_APPEND,
// O_CREATE, O_EXCL and O_TRUNC are refused.
func (s *Sim) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	op := Op{Kind: OpOpen, Name: name}
	if flag&os.O_CREATE != 0 {
		op.Kind = OpCreate
	}
	var f *simFile
	err := s.do(op, func() error {
		n, err := s.openNode(name, flag, perm)
		if err != nil {
			return err
		}
		f = &simFile{s: s, n: n, name: name, flag: flag}
		n.opens++
		s.open[f] = struct{}{}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (s *Sim) openNode(name string, flag int, perm fs.FileMode) (*node, error) {
	if flag&^knownFlags != 0 {
		return nil, syscall.EINVAL
	}
	create := flag&os.O_CREATE != 0
	dir, base, n, err := s.lookup(name, !create)
	writes := flag&(os.O_WRONLY|os.O_RDWR|os.O_TRUNC) != 0
	switch {
	case err != nil:
		return nil, err
	case n == nil && !create:
		return nil, syscall.ENOENT
	case n == nil:
		n = &node{mode: perm.Perm(), mtime: s.next}
		s.addName(dir, base, n)
		return n, nil
	case create && flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case n.link != "":
		return nil, syscall.ELOOP
	case n.mode.IsDir() && (writes || create):
		return nil, syscall.EISDIR
	}
	if flag&os.O_TRUNC != 0 {
		s.truncate(n, 0)
	}
	return n, nil
}

// Rename implements [FS].
func (s *Sim) Rename(oldname, newname string) error {
	return s.do(Op{Kind: OpRename, Name: oldname, To: newname}, func() error {
		from, old, n, err := s.lookup(oldname, false)
		if err != nil {
			return err
		}
		to, new, target, err := s.lookup(newname, false)
		switch {
		case err != nil:
			return err
		case n == nil:
			return syscall.ENOENT
		case from == nil || to == nil:
			return syscall.EBUSY // the root
		case target != nil && target.mode.IsDir():
			return syscall.EEXIST // what os.Rename makes of it
		case target == n:
			return nil
		case n.mode.IsDir() && n.holds(to):
			return syscall.EINVAL
		case n.mode.IsDir() && target != nil:
			return syscall.ENOTDIR
		}
		s.renameName(from, old, to, new)
		return nil
	})
}

// holds reports whether d is n or below it.
func (n *node) holds(d *node) bool {
	if n == d {
		return true
	}
	for _, child := range n.names {
		if child.mode.IsDir() && child.holds(d) {
			return true
		}
	}
	return false
}

// Remove implements [FS].
func (s *Sim) Remove(name string) error {
	return s.do(Op{Kind: OpRemove, Name: name}, func() error {
		dir, base, n, err := s.lookup(name, false)
		switch {
		case err != nil:
			return err
		case n == nil:
			return syscall.ENOENT
		case dir == nil:
			return syscall.EBUSY
		case len(n.names) > 0:
			return syscall.ENOTEMPTY
		}
		s.removeName(dir, base)
		return nil
	})
}

// MkdirAll implements [FS].
func (s *Sim) MkdirAll(name string, perm fs.FileMode) error {
	return s.do(Op{Kind: OpMkdirAll, Name: name}, func() error { return s.mkdirAll(name, perm) })
}

func (s *Sim) mkdirAll(name string, perm fs.FileMode) error {
	dir, base, n, err := s.lookup(name, true)
	if err == syscall.ENOENT && name != "" {
		if err := s.mkdirAll(filepath.Dir(filepath.Clean("/"+name)), perm); err != nil {
			return err
		}
		dir, base, n, err = s.lookup(name, true)
	}
	switch {
	case err != nil:
		return err
	case n != nil && !n.mode.IsDir():
		return syscall.ENOTDIR
	case n == nil:
		if _, _, link, _ := s.lookup(name, false); link != nil {
			return syscall.ENOENT // it leads nowhere, and nothing is made there
		}
		d := newDir(perm)
		d.mtime = s.next
		s.addName(dir, base, d)
	}
	if dir != nil && !s.dead { // a crash in the middle leaves what it made unsynced
		s.syncNames(dir)
	}
	return nil
}

// ReadDir implements [FS].
func (s *Sim) ReadDir(name string) ([]fs.DirEntry, error) {
	var entries []fs.DirEntry
	err := s.do(Op{Kind: OpReadDir, Name: name}, func() error {
		n, err := s.mustFind(name, true)
		switch {
		case err != nil:
			return err
		case !n.mode.IsDir():
			return syscall.ENOTDIR
		}
		entries = make([]fs.DirEntry, 0, len(n.names))
		for _, base := range sortedNames(n.names) {
			entries = append(entries, fs.FileInfoToDirEntry(n.names[base].info(base)))
		}
		return nil
	})
	return entries, err
}

// Lstat implements [FS].
func (s *Sim) Lstat(name string) (fs.FileInfo, error) {
	var info fs.FileInfo
	err := s.do(Op{Kind: OpLstat, Name: name}, func() error {
		n, err := s.mustFind(name, false)
		if err != nil {
			return err
		}
		info = n.info(filepath.Base(name))
		return nil
	})
	return info, err
}

// SyncDir implements [FS].
func (s *Sim) SyncDir(name string) error {
	return s.do(Op{Kind: OpSyncDir, Name: name}, func() error {
		n, err := s.mustFind(name, true)
		switch {
		case err != nil:
			return err
		case !n.mode.IsDir():
			return syscall.ENOTDIR
		case !s.dead:
			s.syncNames(n)
		}
		return nil
	})
}

// Lock implements [FS].
func (s *Sim) Lock(name string) (io.Closer, error) {
	var l *simLock
	err := s.do(Op{Kind: OpLock, Name: name}, func() error {
		n, err := s.openNode(name, os.O_CREATE|os.O_RDWR, 0o600)
		switch {
		case err != nil:
			return err
		case s.locks[n] != nil:
			return ErrLocked
		}
		l = &simLock{s: s, n: n, name: name}
		s.locks[n] = l
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

type simLock struct {
	s    *Sim
	n    *node
	name string
}

// Close ends the lock; again, it does nothing.
func (l *simLock) Close() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.s.locks[l.n] == l {
		delete(l.s.locks, l.n)
	}
	return nil
}

// simInfo is what a node was when it was asked.
type simInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime uint64
}

func (n *node) info(name string) fs.FileInfo {
	return &simInfo{name: name, size: n.size, mode: n.mode, mtime: n.mtime}
}

func (i *simInfo) Name() string      { return i.name }
func (i *simInfo) Size() int64       { return i.size }
func (i *simInfo) Mode() fs.FileMode { return i.mode }
func (i *simInfo) IsDir() bool       { return i.mode.IsDir() }
func (i *simInfo) Sys() any          { return nil }

// ModTime counts operations: the simulated clock ticks a microsecond with each.
func (i *simInfo) ModTime() time.Time {
	return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i.mtime) * time.Microsecond)
}
