package projection

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/dagstore/dagstore/shard"
)

// Record is the durable state of one life of a shard: the newest event of its key. It
// is immutable.
//
// There are millions, so a record is one string. The garbage collector looks at the
// string's header, never inside, and what a checkpoint holds of a record is the same
// bytes. All integers are little endian:
//
//	 0  8  seq
//	 8  8  gen
//	16  8  time
//	24  4  length u of the URL
//	28  2  length k of the key
//	30  1  life
//	31  1  flags   1 lazy, 2 transient, 4 reason, 8 index
//	32  k  key
//	    u  URL
//	       transient: 4 bytes length, text                                  if flagged
//	       reason: 4 bytes length, text                                     if flagged
//	       index: blocks, payload bytes, source size, 8 bytes each; digest  if flagged
//
// What is not flagged is empty or zero, and what is flagged is not, so that equal
// states are equal bytes. The kind of the event is that which leads to the life.
type Record struct {
	text string
}

const (
	recordHeader = 32
	recordIndex  = 3*8 + 32

	recordLazy      = 1
	recordTransient = 2
	recordReason    = 4
	recordHasIndex  = 8
	recordFlags     = recordLazy | recordTransient | recordReason | recordHasIndex
)

// kinds says by life which event leads there. No event leads to Initialising.
var kinds = [...]shard.Kind{
	shard.None: shard.EventDestroyed, shard.Registered: shard.EventRegistered, shard.Available: shard.EventIndexed,
	shard.Errored: shard.EventFailed, shard.Recovering: shard.EventRecovering,
}

// kindOf returns the kind of event that leads to a life, or 0.
func kindOf(l shard.Life) shard.Kind {
	if int(l) < len(kinds) {
		return kinds[l]
	}
	return 0
}

// appendRecord appends the bytes of the record of e to dst. Of events that end a life
// they are those that a worker of Load is told; no record has them. An event whose
// kind does not lead to its life, or whose key is too long, has none.
func appendRecord(dst []byte, e *shard.Event) ([]byte, error) {
	key, st := e.Key.String(), &e.State
	if len(key) > math.MaxUint16 || len(st.URL) > math.MaxInt32 {
		return dst, fmt.Errorf("%w: seq %d: a key of %d bytes, a URL of %d bytes", shard.ErrBadEvent, e.Seq, len(key), len(st.URL))
	}
	if kindOf(st.Life) != e.Kind {
		return dst, fmt.Errorf("%w: seq %d: shard %q cannot be %s and then %s", shard.ErrIllegal, e.Seq, e.Key, e.Kind, st.Life)
	}
	var flags byte
	if st.Lazy {
		flags |= recordLazy
	}
	if st.Transient != "" {
		flags |= recordTransient
	}
	if st.Reason != "" {
		flags |= recordReason
	}
	if st.Index != (shard.IndexInfo{}) {
		flags |= recordHasIndex
	}
	var h [recordHeader]byte
	binary.LittleEndian.PutUint64(h[0:], e.Seq)
	binary.LittleEndian.PutUint64(h[8:], e.Gen)
	binary.LittleEndian.PutUint64(h[16:], uint64(e.Time))
	binary.LittleEndian.PutUint32(h[24:], uint32(len(st.URL)))
	binary.LittleEndian.PutUint16(h[28:], uint16(len(key)))
	h[30], h[31] = byte(st.Life), flags
	dst = append(dst, h[:]...)
	dst = append(dst, key...)
	dst = append(dst, st.URL...)
	if flags&recordTransient != 0 {
		dst = appendText(dst, st.Transient)
	}
	if flags&recordReason != 0 {
		dst = appendText(dst, st.Reason)
	}
	if flags&recordHasIndex != 0 {
		x := &st.Index
		dst = binary.LittleEndian.AppendUint64(dst, x.Blocks)
		dst = binary.LittleEndian.AppendUint64(dst, x.PayloadBytes)
		dst = binary.LittleEndian.AppendUint64(dst, x.SourceSize)
		dst = append(dst, x.Digest[:]...)
	}
	return dst, nil
}

func appendText(dst []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, uint32(len(s))), s...)
}

var errBadRecord = errors.New("not a record")

// recordLen returns how long the record at the front of text is. It trusts nothing:
// after a nil error the methods of Record work on that many bytes, and no other bytes
// mean the same.
func recordLen(text string) (int, error) {
	if len(text) < recordHeader {
		return 0, errBadRecord
	}
	r := Record{text}
	n := uint64(recordHeader) + uint64(le16(text[28:])) + uint64(le32(text[24:]))
	flags := text[31]
	if flags&^recordFlags != 0 || r.Life() == shard.None || kindOf(r.Life()) == 0 || r.Gen() == 0 || r.Gen() > r.Seq() || n > uint64(len(text)) {
		return 0, errBadRecord
	}
	for _, flag := range [...]byte{recordTransient, recordReason} {
		if flags&flag == 0 {
			continue
		}
		if uint64(len(text))-n < 4 || le32(text[n:]) == 0 {
			return 0, errBadRecord
		}
		if n += 4 + uint64(le32(text[n:])); n > uint64(len(text)) {
			return 0, errBadRecord
		}
	}
	if flags&recordHasIndex != 0 {
		if uint64(len(text))-n < recordIndex || text[n:n+recordIndex] == string(zeroIndex[:]) {
			return 0, errBadRecord
		}
		n += recordIndex
	}
	return int(n), nil
}

var zeroIndex [recordIndex]byte

func le16(s string) uint16 { return uint16(s[0]) | uint16(s[1])<<8 }

func le32(s string) uint32 {
	_ = s[3]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

func le64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

func (r *Record) key() string { return r.text[recordHeader:][:le16(r.text[28:])] }

// tail is what follows the URL.
func (r *Record) tail() string {
	return r.text[recordHeader+uint64(le16(r.text[28:]))+uint64(le32(r.text[24:])):]
}

// Key returns the shard's key.
func (r *Record) Key() shard.Key { return shard.KeyFromString(r.key()) }

// Seq returns the sequence number of the newest event of this life.
func (r *Record) Seq() uint64 { return le64(r.text) }

// Gen returns the sequence number of the life's registration.
func (r *Record) Gen() uint64 { return le64(r.text[8:]) }

// Time returns when the newest event was decided, in Unix nanoseconds.
func (r *Record) Time() int64 { return int64(le64(r.text[16:])) }

// Life returns how far the shard has come.
func (r *Record) Life() shard.Life { return shard.Life(r.text[30]) }

// Lazy says whether the shard was registered with lazy initialisation.
func (r *Record) Lazy() bool { return r.text[31]&recordLazy != 0 }

// URL returns the URL of the shard's mount.
func (r *Record) URL() string {
	return r.text[recordHeader+int(le16(r.text[28:])):][:le32(r.text[24:])]
}

// Reason returns why the shard is errored or recovering, or nothing.
func (r *Record) Reason() string {
	if r.text[31]&recordReason == 0 {
		return ""
	}
	s := r.tail()
	if r.text[31]&recordTransient != 0 {
		s = s[4+le32(s):]
	}
	return s[4:][:le32(s)]
}

// Index sums up the shard's index; zero if it has none.
func (r *Record) Index() (x shard.IndexInfo) {
	if r.text[31]&recordHasIndex == 0 {
		return x
	}
	s := r.text[len(r.text)-recordIndex:]
	x.Blocks, x.PayloadBytes, x.SourceSize = le64(s), le64(s[8:]), le64(s[16:])
	copy(x.Digest[:], s[24:])
	return x
}

// State returns the whole durable state.
func (r *Record) State() shard.State {
	st := shard.State{Life: r.Life(), Lazy: r.Lazy(), URL: r.URL(), Reason: r.Reason(), Index: r.Index()}
	if r.text[31]&recordTransient != 0 {
		s := r.tail()
		st.Transient = s[4:][:le32(s)]
	}
	return st
}

// Event returns the newest event of this life. Its strings are the record's.
func (r *Record) Event() shard.Event {
	return shard.Event{Seq: r.Seq(), Gen: r.Gen(), Time: r.Time(), Kind: kinds[r.Life()], Key: r.Key(), State: r.State()}
}
