package fsio

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// ErrCrashed is returned by every operation of a [Sim] and of its files from the
// moment it lost power.
var ErrCrashed = errors.New("the simulated machine has lost power")

// Sim is a disk in memory that a test can fill, break and cut off from power. It
// implements [FS]; its files are [Mapper]s, whose mappings are copies that are
// overwritten by unmap.
//
// It keeps two states, the one that programs see and the one that is on the
// platter:
//
//	a file       volatile: pages, size           durable: pages, size
//	a directory  volatile: name → node           durable: name → node
//	                        └── unsynced name operations, in order ──┘
//
// Sync, SyncData and SyncDir carry the one over to the other, as the package
// comment says. [Sim.Crash] returns the machine after a power cut: what was synced,
// and of everything else a part that the seed chooses.
//
// All choices follow from the seed and the order of the calls, so one goroutine
// that does the same gets the same.
type Sim struct {
	simOptions
	mu      sync.Mutex
	rng     *rand.Rand
	root    *node
	pending []nameOp // unsynced name operations, in the order they were done
	gen     uint64   // pages of another gen belong to a clone too
	used    int64    // bytes of the pages of all files that have a name or are open
	dead    bool

	next   uint64 // index of the next operation
	trace  []Op
	faults map[uint64]Fault
	hook   func(Op) error

	open  map[*simFile]struct{}
	locks map[*node]*simLock
	maps  int
}

type simOptions struct {
	capacity       int64
	traceLimit     int
	tornSectors    bool
	reorderRenames bool
}

// SimOption changes what a [Sim] can do.
type SimOption func(*simOptions)

// Capacity limits the bytes that all files together may hold, counted in pages of
// 4 KiB. Writes beyond it get ENOSPC. Zero means no limit.
func Capacity(bytes int64) SimOption { return func(o *simOptions) { o.capacity = bytes } }

// TornSectors lets a crash leave a sector whose front is new and whose end is old.
// Disks promise not to do that.
func TornSectors() SimOption { return func(o *simOptions) { o.tornSectors = true } }

// ReorderRenames lets a crash leave a renamed file under both names or under none.
// Journalled file systems promise not to do that.
func ReorderRenames() SimOption { return func(o *simOptions) { o.reorderRenames = true } }

// TraceLimit sets how many operations [Sim.Ops] remembers, the first ones of this
// Sim. The default is 65,536.
func TraceLimit(n int) SimOption { return func(o *simOptions) { o.traceLimit = n } }

// NewSim returns an empty disk with the root directory "/". Relative names are
// taken from there.
func NewSim(seed uint64, opts ...SimOption) *Sim {
	o := simOptions{traceLimit: 1 << 16}
	for _, opt := range opts {
		opt(&o)
	}
	return newSim(o, seed)
}

// gens gives every Sim and every clone its own generation of pages.
var gens atomic.Uint64

func newSim(o simOptions, seed uint64) *Sim {
	return &Sim{
		simOptions: o,
		rng:        rand.New(rand.NewPCG(seed, 0)),
		gen:        gens.Add(1),
		root:       newDir(0o700),
		faults:     map[uint64]Fault{},
		open:       map[*simFile]struct{}{},
		locks:      map[*node]*simLock{},
	}
}

// OpKind is the kind of an operation.
type OpKind uint8

const (
	OpOpen OpKind = iota + 1 // OpenFile without O_CREATE
	OpCreate
	OpRead
	OpWrite
	OpTruncate
	OpSync
	OpSyncData
	OpStat
	OpMap
	OpClose
	OpRename
	OpRemove
	OpMkdirAll
	OpReadDir
	OpLstat
	OpSyncDir
	OpLock
)

var opNames = [...]string{
	"", "open", "create", "read", "write", "truncate", "sync", "syncdata", "stat", "map",
	"close", "rename", "remove", "mkdirall", "readdir", "lstat", "syncdir", "lock",
}

// String returns the kind in lower case.
func (k OpKind) String() string {
	if int(k) < len(opNames) {
		return opNames[k]
	}
	return "invalid"
}

// Mutates reports whether operations of this kind change anything on the disk.
func (k OpKind) Mutates() bool {
	switch k {
	case OpOpen, OpRead, OpStat, OpMap, OpClose, OpReadDir, OpLstat:
		return false
	}
	return true
}

// Op is one operation on a [Sim]: a call of a method of [FS] or [File] other than
// Name and Seek.
type Op struct {
	Index  uint64 // 0, 1, 2, … in this Sim
	Kind   OpKind
	Name   string
	To     string // the new name of a rename
	Offset int64  // of a read, write or map; the size that a truncate asks for
	Len    int64  // of a read or write
}

// String gives the operation without its index, as "write a/b 4096+512".
func (o Op) String() string {
	switch o.Kind {
	case OpRead, OpWrite:
		return fmt.Sprintf("%s %s %d+%d", o.Kind, o.Name, o.Offset, o.Len)
	case OpTruncate:
		return fmt.Sprintf("%s %s %d", o.Kind, o.Name, o.Offset)
	case OpRename:
		return fmt.Sprintf("%s %s %s", o.Kind, o.Name, o.To)
	}
	return o.Kind.String() + " " + o.Name
}

// fail wraps an operation's error as the os package does.
func (o Op) fail(err error) error {
	if o.Kind == OpRename {
		return &os.LinkError{Op: "rename", Old: o.Name, New: o.To, Err: err}
	}
	return &fs.PathError{Op: o.Kind.String(), Path: o.Name, Err: err}
}

// Fault is what can be made to happen to one operation. It is an error so that a
// hook can return it.
type Fault uint8

const (
	// FaultEIO: the operation fails with EIO and does nothing, with one exception.
	// A sync that fails, with this or any other error, does what Linux does:
	// any of the file's unsynced sectors may be lost, and they all count as clean
	// from then on, so that later syncs succeed without writing them.
	FaultEIO Fault = iota + 1
	// FaultENOSPC: the operation fails with ENOSPC and does nothing.
	FaultENOSPC
	// FaultShortWrite: a write writes only its beginning, or nothing, and fails
	// with ENOSPC. Operations of other kinds succeed.
	FaultShortWrite
	// FaultCrash: power is lost at this operation. It may have reached the volatile
	// state; it and all that follow return ErrCrashed.
	FaultCrash

	numFaults
)

// Faults lists every Fault, for tests that try them all.
func Faults() []Fault {
	return []Fault{FaultEIO, FaultENOSPC, FaultShortWrite, FaultCrash}
}

func (f Fault) Error() string {
	names := [numFaults]string{"no fault", "EIO", "ENOSPC", "short write", "crash"}
	if f < numFaults {
		return names[f]
	}
	return "invalid fault"
}

// cause is the error that the program under test sees.
func (f Fault) cause() error {
	switch f {
	case FaultEIO:
		return syscall.EIO
	case FaultENOSPC, FaultShortWrite:
		return syscall.ENOSPC
	}
	return ErrCrashed
}

// FailAt makes f happen to the operation with index n of this Sim. Setting it
// again replaces it; 0 takes it back.
func (s *Sim) FailAt(n uint64, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f == 0 {
		delete(s.faults, n)
		return
	}
	s.faults[n] = f
}

// OnOp has hook asked before every operation; nil ends that. A [Fault] that it
// returns happens; any other error fails the operation as FaultEIO would, with that
// error. The hook is called without a lock held: it may block, and may use the Sim.
func (s *Sim) OnOp(hook func(Op) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// outcome is what begin decided: err is nil, or what the operation returns. It has
// its effect if effect is set; if not and short is set, a part of it.
type outcome struct {
	err    error
	effect bool
	short  bool
}

// begin numbers and records an operation and decides its outcome. It returns with
// s.mu held.
func (s *Sim) begin(op Op) outcome {
	s.mu.Lock()
	op.Index = s.next
	s.next++
	if len(s.trace) < s.traceLimit {
		s.trace = append(s.trace, op)
	}
	var fault error
	if f, ok := s.faults[op.Index]; ok {
		fault = f
	} else if hook := s.hook; hook != nil && !s.dead {
		s.mu.Unlock()
		fault = hook(op)
		s.mu.Lock()
	}
	switch f, _ := fault.(Fault); {
	case s.dead:
		return outcome{err: ErrCrashed}
	case fault == nil:
		return outcome{effect: true}
	case f == FaultShortWrite && op.Kind != OpWrite:
		return outcome{effect: true}
	case f == FaultCrash:
		s.dead = true
		return outcome{err: ErrCrashed, effect: op.Kind.Mutates() && s.coin(2)}
	case f != 0:
		return outcome{err: f.cause(), short: f == FaultShortWrite}
	}
	return outcome{err: fault}
}

// do runs one operation whose effect is all or nothing.
func (s *Sim) do(op Op, effect func() error) error {
	o := s.begin(op)
	defer s.mu.Unlock()
	var err error
	if o.effect {
		err = effect()
	}
	if o.err != nil {
		err = o.err
	}
	if err != nil {
		return op.fail(err)
	}
	return nil
}

// coin is true once in n.
func (s *Sim) coin(n int) bool { return s.rng.IntN(n) == 0 }

// Ops returns the operations so far, the failed ones too, up to the limit of
// [TraceLimit].
func (s *Sim) Ops() []Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.trace)
}

// NumOps returns how many operations there were; it is the index of the next one.
func (s *Sim) NumOps() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// ClearOps forgets the recorded operations. Their numbering goes on.
func (s *Sim) ClearOps() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trace = nil
}

// OpenFiles returns how many files are open and mappings in use.
func (s *Sim) OpenFiles() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open) + s.maps
}

// OpenNames returns the names of the open files and of the locks that are held, in
// order; those of locks begin with "lock ".
func (s *Sim) OpenNames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.open)+len(s.locks))
	for f := range s.open {
		names = append(names, f.name)
	}
	for _, l := range s.locks {
		names = append(names, "lock "+l.name)
	}
	slices.Sort(names)
	return names
}

// HeldLocks returns how many locks are held.
func (s *Sim) HeldLocks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.locks)
}

// Used returns the bytes that count towards the capacity.
func (s *Sim) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// SetCapacity changes the limit that [Capacity] set.
func (s *Sim) SetCapacity(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capacity = bytes
}

// Symlink makes newname a durable symbolic link to oldname. It is not an operation:
// it is somebody else who plants links.
func (s *Sim) Symlink(oldname, newname string) error {
	op := Op{Kind: OpCreate, Name: newname}
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, base, n, err := s.lookup(newname, false)
	switch {
	case err != nil:
		return op.fail(err)
	case n != nil:
		return op.fail(syscall.EEXIST)
	}
	s.addName(dir, base, &node{mode: fs.ModeSymlink | 0o777, link: oldname})
	s.syncNames(dir)
	return nil
}

// FlipBit flips one bit, which the seed chooses, of the byte at off, for the
// program and on the platter. It is not an operation.
func (s *Sim) FlipBit(name string, off int64) error {
	op := Op{Kind: OpWrite, Name: name, Offset: off}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _, n, err := s.lookup(name, true)
	switch {
	case err != nil:
		return op.fail(err)
	case n == nil:
		return op.fail(syscall.ENOENT)
	case !n.mode.IsRegular() || off < 0 || off >= n.size:
		return op.fail(syscall.EINVAL)
	}
	bit := byte(1) << s.rng.IntN(8)
	i, in := int(off/pageSize), off%pageSize
	now, disk := pageAt(n.now, i), pageAt(n.disk, i)
	flip := func(p *page) *page {
		p = s.copyPage(p)
		p.b[in] ^= bit
		return p
	}
	flipped := flip(now)
	if now == nil {
		s.used += pageSize
	}
	n.now = setPage(n.now, i, flipped)
	if disk == now {
		n.disk = setPage(n.disk, i, flipped)
	} else if off < n.diskSize {
		n.disk = setPage(n.disk, i, flip(disk))
	}
	return nil
}

// Tree lists everything on the disk as programs see it, one line each with its size
// ("dir/" for directories), for tests that compare whole disks.
func (s *Sim) Tree() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	var walk func(prefix string, d *node)
	walk = func(prefix string, d *node) {
		for _, name := range sortedNames(d.names) {
			n := d.names[name]
			switch {
			case n.mode.IsDir():
				fmt.Fprintf(&b, "%s%s/\n", prefix, name)
				walk(prefix+name+"/", n)
			case n.link != "":
				fmt.Fprintf(&b, "%s%s -> %s\n", prefix, name, n.link)
			default:
				fmt.Fprintf(&b, "%s%s %d\n", prefix, name, n.size)
			}
		}
	}
	walk("/", s.root)
	return b.String()
}
