package shard

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kind says what happened.
type Kind uint8

const (
	// EventRegistered: a new life begins; Gen equals Seq.
	EventRegistered Kind = iota + 1
	// EventIndexed: a durable index exists; the shard is available.
	EventIndexed
	// EventFailed: the shard is errored; State.Reason says why.
	EventFailed
	// EventRecovering: a recovery has begun.
	EventRecovering
	// EventDestroyed: the life is over; its files may be removed.
	EventDestroyed

	numKinds
)

var kindNames = [numKinds]string{"", "registered", "indexed", "failed", "recovering", "destroyed"}

// String returns the kind's name in lower case.
func (k Kind) String() string {
	if k > 0 && k < numKinds {
		return kindNames[k]
	}
	return "invalid"
}

// Event is one durable fact about one shard.
type Event struct {
	// Seq is the event's place in the journal: 1, 2, 3, … without a gap.
	Seq uint64
	// Gen is the Seq of the event that began this life of the key.
	Gen uint64
	// Time is when the event was decided, in Unix nanoseconds. Information only:
	// nothing depends on it.
	Time  int64
	Kind  Kind
	Key   Key
	State State
}

// ErrBadEvent is wrapped by every error of [DecodeEvent].
var ErrBadEvent = errors.New("bad shard event")

const (
	flagLazy = 1 << iota
	flagTransient
	flagReason
	flagIndex

	knownFlags = flagLazy | flagTransient | flagReason | flagIndex
)

// AppendEvent appends the binary form of e to dst and returns the longer slice.
// The form, all integers little endian or uvarint as encoding/binary defines them:
//
//	kind        1 byte
//	life        1 byte
//	flags       1 byte   1 lazy, 2 transient, 4 reason, 8 index
//	seq-gen     uvarint  0 for a registration
//	time        8 bytes
//	key         uvarint length, bytes
//	url         uvarint length, bytes
//	transient   uvarint length, bytes      if flagged
//	reason      uvarint length, bytes      if flagged
//	index       3 uvarints (blocks, payload bytes, source size), 32 bytes   if flagged
//
// Seq is not part of the form: a record's place in the journal gives it.
func AppendEvent(dst []byte, e *Event) []byte {
	var flags byte
	if e.State.Lazy {
		flags |= flagLazy
	}
	if e.State.Transient != "" {
		flags |= flagTransient
	}
	if e.State.Reason != "" {
		flags |= flagReason
	}
	if e.State.Index != (IndexInfo{}) {
		flags |= flagIndex
	}
	dst = append(dst, byte(e.Kind), byte(e.State.Life), flags)
	dst = binary.AppendUvarint(dst, e.Seq-e.Gen)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Time))
	dst = appendString(dst, e.Key.str)
	dst = appendString(dst, e.State.URL)
	if flags&flagTransient != 0 {
		dst = appendString(dst, e.State.Transient)
	}
	if flags&flagReason != 0 {
		dst = appendString(dst, e.State.Reason)
	}
	if flags&flagIndex != 0 {
		x := &e.State.Index
		dst = binary.AppendUvarint(dst, x.Blocks)
		dst = binary.AppendUvarint(dst, x.PayloadBytes)
		dst = binary.AppendUvarint(dst, x.SourceSize)
		dst = append(dst, x.Digest[:]...)
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// DecodeEvent decodes one event that stands at place seq from the front of src
// into e and returns what follows it. The strings in e share src's memory: a
// caller that keeps few of them should clone those. Errors wrap [ErrBadEvent] and
// leave e undefined.
func DecodeEvent(src string, seq uint64, e *Event) (rest string, err error) {
	d := decoder{src: src}
	*e = Event{Seq: seq}
	e.Kind = Kind(d.byte())
	e.State.Life = Life(d.byte())
	flags := d.byte()
	age := d.uvarint()
	e.Time = int64(d.uint64())
	e.Key.str = d.string()
	e.State.URL = d.string()
	e.State.Lazy = flags&flagLazy != 0
	if flags&flagTransient != 0 {
		e.State.Transient = d.string()
	}
	if flags&flagReason != 0 {
		e.State.Reason = d.string()
	}
	if flags&flagIndex != 0 {
		x := &e.State.Index
		x.Blocks, x.PayloadBytes, x.SourceSize = d.uvarint(), d.uvarint(), d.uvarint()
		copy(x.Digest[:], d.bytes(uint64(len(x.Digest))))
	}
	switch {
	case d.failed:
		return "", fmt.Errorf("%w: seq %d: %d bytes are too few", ErrBadEvent, seq, len(src))
	case e.Kind == 0 || e.Kind >= numKinds || e.State.Life >= numLives || flags&^knownFlags != 0:
		return "", fmt.Errorf("%w: seq %d: kind %d, life %d, flags %#x", ErrBadEvent, seq, e.Kind, e.State.Life, flags)
	case age >= seq:
		return "", fmt.Errorf("%w: seq %d: its life began %d events before it", ErrBadEvent, seq, age)
	}
	e.Gen = seq - age
	return d.src, nil
}

// decoder reads from the front of src; after a short read every method returns
// zero and failed is set, so that callers check once.
type decoder struct {
	src    string
	failed bool
}

func (d *decoder) bytes(n uint64) string {
	if n > uint64(len(d.src)) {
		d.src, d.failed = "", true
		return ""
	}
	b := d.src[:n]
	d.src = d.src[n:]
	return b
}

func (d *decoder) byte() byte {
	if d.src == "" {
		d.failed = true
		return 0
	}
	b := d.src[0]
	d.src = d.src[1:]
	return b
}

func (d *decoder) uint64() uint64 {
	b := d.bytes(8)
	if b == "" {
		return 0
	}
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

func (d *decoder) uvarint() (v uint64) {
	if d.src != "" && d.src[0] < 0x80 { // most lengths are
		v = uint64(d.src[0])
		d.src = d.src[1:]
		return v
	}
	for shift := 0; ; shift += 7 {
		b := d.byte()
		if shift == 63 && b > 1 || shift > 63 {
			d.src, d.failed = "", true
			return 0
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
}

func (d *decoder) string() string { return d.bytes(d.uvarint()) }

// ErrIllegal is wrapped by every error of [CheckNext].
var ErrIllegal = errors.New("illegal shard event")

// CheckNext says whether e may follow for a shard in the given life and
// generation; [None] stands for no shard. It is the relation that every journal
// obeys (a recovery may begin in any life, because a shard whose mount cannot be
// made is errored to its users whatever its record says):
//
//	registered   none                               → registered, Gen = Seq
//	indexed      registered, recovering             → available
//	failed       registered, available, recovering  → errored
//	recovering   any but none                       → recovering
//	destroyed    any but none                       → none
func CheckNext(life Life, gen uint64, e *Event) error {
	ok := false
	switch e.Kind {
	case EventRegistered:
		ok = life == None && e.State.Life == Registered && e.Gen == e.Seq
	case EventIndexed:
		ok = (life == Registered || life == Recovering) && e.State.Life == Available
	case EventFailed:
		ok = (life == Registered || life == Available || life == Recovering) && e.State.Life == Errored
	case EventRecovering:
		ok = life != None && e.State.Life == Recovering
	case EventDestroyed:
		ok = life != None && e.State.Life == None
	}
	if e.Kind != EventRegistered && e.Gen != gen {
		ok = false
	}
	if !ok {
		return fmt.Errorf("%w: seq %d: shard %q of generation %d is %s: cannot be %s (generation %d, then %s)",
			ErrIllegal, e.Seq, e.Key.str, gen, life, e.Kind, e.Gen, e.State.Life)
	}
	return nil
}
