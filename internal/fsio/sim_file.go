package fsio

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// simFile is an open file of a Sim. Its fields below mu of s change under it.
type simFile struct {
	s    *Sim
	n    *node
	name string
	flag int

	pos    int64
	closed bool
	locked bool // by TryLock
}

var errNegative = errors.New("negative offset")

func (f *simFile) Name() string { return f.name }

// ready says why an operation on f cannot be done, or nil.
func (f *simFile) ready(write bool) error {
	access := f.flag & (os.O_WRONLY | os.O_RDWR)
	switch {
	case f.closed:
		return fs.ErrClosed
	case write && access == os.O_RDONLY, !write && access == os.O_WRONLY:
		return syscall.EBADF
	case f.n.mode.IsDir():
		return syscall.EISDIR
	}
	return nil
}

func (f *simFile) Read(p []byte) (int, error) {
	return f.read(p, 0, true)
}

// ReadAt implements io.ReaderAt.
func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	return f.read(p, off, false)
}

func (f *simFile) read(p []byte, off int64, sequential bool) (int, error) {
	op := Op{Kind: OpRead, Name: f.name, Offset: off, Len: int64(len(p))}
	if sequential {
		op.Offset = f.position(false)
	}
	o := f.s.begin(op)
	defer f.s.mu.Unlock()
	switch err := f.ready(false); {
	case o.err != nil:
		return 0, op.fail(o.err)
	case off < 0:
		return 0, op.fail(errNegative)
	case err != nil:
		return 0, op.fail(err)
	case len(p) == 0:
		return 0, nil
	}
	if sequential {
		off = f.pos
	}
	n := f.n.readAt(p, off)
	if sequential {
		f.pos += int64(n)
		if n > 0 {
			return n, nil
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// position is where the next Read or Write without an offset goes.
func (f *simFile) position(write bool) int64 {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if write && f.flag&os.O_APPEND != 0 {
		return f.n.size
	}
	return f.pos
}

func (f *simFile) Write(p []byte) (int, error) {
	return f.write(p, 0, true)
}

// WriteAt implements io.WriterAt. As with os.File, a file opened with O_APPEND
// refuses it.
func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	if f.flag&os.O_APPEND != 0 {
		return 0, Op{Kind: OpWrite, Name: f.name}.fail(errors.New("WriteAt on a file opened with O_APPEND"))
	}
	return f.write(p, off, false)
}

func (f *simFile) write(p []byte, off int64, sequential bool) (int, error) {
	op := Op{Kind: OpWrite, Name: f.name, Offset: off, Len: int64(len(p))}
	if sequential {
		op.Offset = f.position(true)
	}
	o := f.s.begin(op)
	defer f.s.mu.Unlock()
	if o.err != nil && !o.effect && !o.short {
		return 0, op.fail(o.err)
	}
	if off < 0 {
		return 0, op.fail(errNegative)
	}
	if err := f.ready(true); err != nil {
		return 0, op.fail(err)
	}
	switch {
	case sequential && f.flag&os.O_APPEND != 0:
		off = f.n.size
	case sequential:
		off = f.pos
	}
	if o.short && len(p) > 0 {
		p = p[:f.s.rng.IntN(len(p))]
	}
	n, err := f.s.writeAt(f.n, p, off)
	if sequential {
		f.pos = off + int64(n)
	}
	if o.err != nil {
		err = o.err
	}
	if err != nil {
		return n, op.fail(err)
	}
	return n, nil
}

func (f *simFile) Seek(offset int64, whence int) (int64, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	fail := func(err error) (int64, error) {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: err}
	}
	switch {
	case f.closed:
		return fail(fs.ErrClosed)
	case f.s.dead:
		return fail(ErrCrashed)
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.n.size
	default:
		return fail(syscall.EINVAL)
	}
	if offset < 0 {
		return fail(syscall.EINVAL)
	}
	f.pos = offset
	return offset, nil
}

func (f *simFile) Stat() (fs.FileInfo, error) {
	var info fs.FileInfo
	err := f.s.do(Op{Kind: OpStat, Name: f.name}, func() error {
		if f.closed {
			return fs.ErrClosed
		}
		info = f.n.info(filepath.Base(f.name))
		return nil
	})
	return info, err
}

func (f *simFile) Sync() error     { return f.sync(OpSync) }
func (f *simFile) SyncData() error { return f.sync(OpSyncData) }

func (f *simFile) sync(kind OpKind) error {
	op := Op{Kind: kind, Name: f.name}
	o := f.s.begin(op)
	defer f.s.mu.Unlock()
	switch {
	case errors.Is(o.err, ErrCrashed):
		return op.fail(o.err) // all that is unsynced is undecided anyway
	case f.closed:
		return op.fail(fs.ErrClosed)
	case o.err != nil:
		f.s.failSync(f.n)
		return op.fail(o.err)
	case f.n.mode.IsDir():
		f.s.syncNames(f.n)
	default:
		f.n.sync()
	}
	return nil
}

func (f *simFile) Truncate(size int64) error {
	return f.s.do(Op{Kind: OpTruncate, Name: f.name, Offset: size}, func() error {
		switch err := f.ready(true); {
		case errors.Is(err, fs.ErrClosed):
			return err
		case err != nil || size < 0:
			return syscall.EINVAL
		}
		f.s.truncate(f.n, size)
		return nil
	})
}

// Close closes the file even if it returns an error.
func (f *simFile) Close() error {
	op := Op{Kind: OpClose, Name: f.name}
	o := f.s.begin(op)
	defer f.s.mu.Unlock()
	if f.closed {
		return op.fail(fs.ErrClosed)
	}
	f.closed = true
	delete(f.s.open, f)
	f.n.opens--
	f.s.free(f.n)
	if o.err != nil {
		return op.fail(o.err)
	}
	return nil
}

// unmapped is what a mapping holds after its end, so that a late reader sees it.
const unmapped = 0xDB

// MapsMemory implements [MemoryMapper].
func (f *simFile) MapsMemory() {}

// Map implements [Mapper] with a copy of the contents.
func (f *simFile) Map() ([]byte, func() error, error) {
	var data []byte
	err := f.s.do(Op{Kind: OpMap, Name: f.name}, func() error {
		if err := f.ready(false); err != nil {
			return err
		}
		data = make([]byte, f.n.size)
		f.n.readAt(data, 0)
		f.s.maps++
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return data, sync.OnceValue(func() error {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		f.s.maps--
		for i := range data {
			data[i] = unmapped
		}
		return nil
	}), nil
}
