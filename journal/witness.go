package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
)

// A tear and a loss look the same from inside a log: both end it. What tells them apart
// is written elsewhere. HEAD, the checkpoints and the marks of views, and every file that
// is named by a generation are only ever written for events that are durable, so
//
//	something says that event n was durable, and the log ends before n  ⇒  damage
//
// whatever a crash did: a witness may be missing or behind, and is never ahead.

// Witness is something outside the log that says how far the log was durable once.
type Witness struct {
	// By says what the witness is, to people: a file, or what a directory holds.
	By string
	// At is what was durable: the position itself, or if its Digest is zero, the event
	// with that sequence number.
	At Position
}

func (w *Witness) String() string {
	if w.At.Digest == ([32]byte{}) {
		return fmt.Sprintf("%s says that event %d was durable", w.By, w.At.Seq)
	}
	return fmt.Sprintf("%s says that %v was durable", w.By, w.At)
}

// LostError says that a journal does not hold what something outside it says was
// durable: its newest events are gone, or it is another journal than the one that the
// witnesses are of. It is a [*DamageError].
type LostError struct {
	DamageError
	// Head is where the journal ends; the zero Position if there is none.
	Head Position
	// Witnesses are those that the journal does not bear out, in the order in which they
	// were asked. One of a position at or before Head is of another journal, or of a
	// course that this one has not taken.
	Witnesses []Witness
}

// Unwrap returns the DamageError.
func (e *LostError) Unwrap() error { return &e.DamageError }

// newLostError describes what ws say of a journal whose file ends at off with head.
func newLostError(file string, off int64, head Position, ws []Witness) *LostError {
	var b strings.Builder
	if head == (Position{}) {
		b.WriteString("the journal holds nothing")
	} else {
		fmt.Fprintf(&b, "the journal ends at %v", head)
	}
	for i := range ws {
		b.WriteString("; ")
		b.WriteString(ws[i].String())
		if ws[i].At.Seq <= head.Seq {
			b.WriteString(", which is not in this journal")
		}
	}
	return &LostError{DamageError: DamageError{File: file, Offset: off, What: b.String()}, Head: head, Witnesses: ws}
}

// CheckWitnesses returns a [*LostError] if j does not hold what the witnesses say was
// durable. What was compacted is taken for held. Other errors are j's.
func CheckWitnesses(j Journal, ws []Witness) error {
	head := j.Head()
	lost, err := notHeld(j, head, ws)
	if err != nil || len(lost) == 0 {
		return err
	}
	file, off := "the journal", int64(-1)
	if f, ok := j.(*File); ok {
		file, off = f.place()
	}
	return newLostError(file, off, head, lost)
}

// place is where the journal ends.
func (f *File) place() (file string, off int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.last.number == 0 {
		return segmentName(1), 0
	}
	return f.mu.last.name(), f.mu.end
}

// notHeld returns the witnesses that j, which ends at head, does not bear out.
func notHeld(j any, head Position, ws []Witness) (lost []Witness, err error) {
	p, _ := j.(Positioner)
	for _, w := range ws {
		switch {
		case w.At.Seq > head.Seq:
			if !planted.Bug("journal-witnesses-not-asked") {
				lost = append(lost, w)
			}
		case w.At.Seq == 0 || w.At.Digest == ([32]byte{}) || p == nil:
		default:
			if planted.Bug("journal-witness-digest-not-compared") {
				continue
			}
			at, err := p.PositionAt(w.At.Seq)
			var damage *DamageError
			switch {
			case errors.Is(err, ErrCompacted) || errors.As(err, &damage):
				// Nobody can tell; damage is for whoever needs what is damaged.
			case err != nil:
				return nil, err
			case at != w.At:
				lost = append(lost, w)
			}
		}
	}
	return lost, nil
}

// OpenFileChecked is [OpenFile] with a check of what is found. It is called once, when the
// lock is held and before anything is written, so that nobody changes what it looks at. It
// may read the journal, which shows what was found, as far as it can be read; damage that
// it meets is for those to report who need what is damaged. Its error is returned as it
// is, except that a [*LostError] also says what HEAD says.
func OpenFileChecked(fsys fsio.FS, dir string, opts FileOptions, check func(j *File) error) (*File, error) {
	return openFile(fsys, dir, opts, check)
}

// HasFiles reports whether the directory dir holds a journal, or any part of one: a
// segment, a base, or HORIZON. It changes nothing. A directory that is not there holds
// none.
func HasFiles(fsys fsio.FS, dir string) (bool, error) {
	f := files{fsys: fsys, dir: dir}
	n, err := f.list()
	if isNotExist(err) {
		return false, nil
	}
	return len(n.segments)+len(n.bases) > 0 || n.horizon, err
}

// readHead returns what HEAD says; nil if it tells nothing, because it is not there, is
// torn, or is of a format that this release does not know.
func (f *files) readHead() (*watermark, error) {
	info, err := f.fsys.Lstat(f.path(headName))
	if isNotExist(err) || err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: open: %w", err)
	}
	file, err := f.fsys.OpenFile(f.path(headName), os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: open: %w", err)
	}
	// A file that was only read has nothing to report on closing.
	defer func() { _ = file.Close() }()
	var b [headSize]byte
	n, err := readFull(file, b[:], 0)
	if err != nil {
		return nil, fmt.Errorf("journal: open: %w", err)
	}
	w := new(watermark)
	if n < len(b) || !w.parse(&b) {
		return nil, nil
	}
	return w, nil
}

// question holds what was found against what HEAD and check say. f shows already what was
// found.
func (f *File) question(found *findings, check func(*File) error) error {
	w, err := f.readHead()
	if err != nil {
		return err
	}
	if planted.Bug("journal-head-not-asked") {
		w = nil
	}
	var lost *LostError
	if w != nil {
		by := Witness{By: filepath.Join(filepath.Base(f.dir), headName), At: w.pos}
		if err := CheckWitnesses(f, []Witness{by}); err != nil && !errors.As(err, &lost) {
			return err
		}
	}
	if check != nil {
		err := check(f)
		var more *LostError
		switch {
		case errors.As(err, &more) && lost != nil:
			return newLostError(lost.File, lost.Offset, lost.Head, append(lost.Witnesses, more.Witnesses...))
		case err != nil && lost == nil:
			return err
		}
	}
	switch {
	case lost != nil:
		return lost
	case w != nil:
		return w.check(found)
	}
	return nil
}

// check fails if HEAD, whose position the journal holds, is of another segment than the
// one that has its number, or of more of the last segment than there is.
func (w *watermark) check(found *findings) error {
	what := ""
	last := found.last
	switch {
	case len(found.segments) == 0: // nothing was durable but the segment's header
	case w.number > last.number:
		what = fmt.Sprintf("HEAD is of segment %d, the last one is number %d", w.number, last.number)
	case w.number == last.number && w.salt != last.salt:
		what = "HEAD is of another segment of this number"
	case w.number == last.number && w.end > found.end:
		what = fmt.Sprintf("HEAD says that the segment was durable up to offset %d", w.end)
	}
	if what == "" {
		return nil
	}
	return &DamageError{File: last.name(), Offset: found.end, What: what}
}

// CountFiles is how many segments and bases the directory dir holds; 0 if it is not
// there.
func CountFiles(fsys fsio.FS, dir string) (int, error) {
	f := files{fsys: fsys, dir: dir}
	n, err := f.list()
	if isNotExist(err) {
		return 0, nil
	}
	return len(n.segments) + len(n.bases), err
}

// LockName is the name of the file in the journal's directory that its writer locks.
const LockName = "LOCK"
