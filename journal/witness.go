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
	return newLostError("the journal", -1, head, lost)
}

// notHeld returns the witnesses that j, which ends at head, does not bear out.
func notHeld(j any, head Position, ws []Witness) (lost []Witness, err error) {
	p, _ := j.(Positioner)
	for _, w := range ws {
		switch {
		case w.At.Seq > head.Seq:
			lost = append(lost, w)
		case w.At.Seq == 0 || w.At.Digest == ([32]byte{}) || p == nil:
		default:
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

// OpenFileWitnessed is [OpenFile] with witnesses: a journal that does not hold what they
// say was durable is refused with a [*LostError], before anything is written. witnesses
// is called once, when the lock is held, so that nobody writes what it looks at; its
// error is returned as it is.
func OpenFileWitnessed(fsys fsio.FS, dir string, opts FileOptions, witnesses func() ([]Witness, error)) (*File, error) {
	return openFile(fsys, dir, opts, witnesses)
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

// question holds what was found against what HEAD and others say. f shows already what
// was found.
func (f *File) question(found *findings, witnesses func() ([]Witness, error)) error {
	var ws []Witness
	w, err := f.readHead()
	if err != nil {
		return err
	}
	if w != nil && !planted.Bug("journal-head-not-asked") {
		ws = append(ws, Witness{By: filepath.Join(filepath.Base(f.dir), headName), At: w.pos})
	}
	if witnesses != nil {
		more, err := witnesses()
		if err != nil {
			return err
		}
		if !planted.Bug("journal-witnesses-not-asked") {
			ws = append(ws, more...)
		}
	}
	head := f.head()
	lost, err := notHeld(f, head, ws)
	if err != nil {
		return err
	}
	file, off := segmentName(1), int64(0)
	if len(found.segments) > 0 {
		file, off = found.last.name(), found.end
	}
	if len(lost) > 0 {
		return newLostError(file, off, head, lost)
	}
	if w != nil && !planted.Bug("journal-head-not-asked") {
		return w.check(found, file)
	}
	return nil
}

// check fails if HEAD, whose position the journal holds, is of another segment than the
// one that has its number, or of more of the last segment than there is.
func (w *watermark) check(found *findings, file string) error {
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
	return &DamageError{File: file, Offset: found.end, What: what}
}
