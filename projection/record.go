package projection

import (
	"strings"

	"github.com/dagstore/dagstore/shard"
)

// Record is the durable state of one life of a shard. It is immutable. There are
// millions, so it is packed: the strings share one allocation, and what most
// shards lack is behind a pointer.
type Record struct {
	text   string  // key ‖ URL ‖ transient
	next   *Record // another key with the same hash
	more   *more   // nil: no reason, no index
	gen    uint64
	seq    uint64
	time   int64
	urlLen uint32
	keyLen uint16
	life   shard.Life
	lazy   bool
}

type more struct {
	reason string
	index  shard.IndexInfo
}

// newRecord makes the record of an event. It shares the text of prev, the record
// before the event, if that says the same, and copies it otherwise.
func newRecord(e *shard.Event, prev *Record) *Record {
	key, st := e.Key.String(), &e.State
	r := &Record{
		gen: e.Gen, seq: e.Seq, time: e.Time, life: st.Life, lazy: st.Lazy,
		keyLen: uint16(len(key)), urlLen: uint32(len(st.URL)),
	}
	if prev != nil && prev.gen == e.Gen && prev.url() == st.URL && prev.transient() == st.Transient {
		r.text = prev.text
	} else {
		var b strings.Builder
		b.Grow(len(key) + len(st.URL) + len(st.Transient))
		b.WriteString(key)
		b.WriteString(st.URL)
		b.WriteString(st.Transient)
		r.text = b.String()
	}
	if st.Reason != "" || st.Index != (shard.IndexInfo{}) {
		r.more = &more{reason: strings.Clone(st.Reason), index: st.Index}
	}
	return r
}

func (r *Record) key() string       { return r.text[:r.keyLen] }
func (r *Record) url() string       { return r.text[r.keyLen:][:r.urlLen] }
func (r *Record) transient() string { return r.text[uint32(r.keyLen)+r.urlLen:] }

// Key returns the shard's key.
func (r *Record) Key() shard.Key { return shard.KeyFromString(r.key()) }

// Gen returns the sequence number of the life's registration.
func (r *Record) Gen() uint64 { return r.gen }

// Seq returns the sequence number of the newest event of this life.
func (r *Record) Seq() uint64 { return r.seq }

// Time returns when that event was decided, in Unix nanoseconds.
func (r *Record) Time() int64 { return r.time }

// Life returns how far the shard has come.
func (r *Record) Life() shard.Life { return r.life }

// URL returns the URL of the shard's mount.
func (r *Record) URL() string { return r.url() }

// Reason returns why the shard is errored or recovering, or nothing.
func (r *Record) Reason() string {
	if r.more == nil {
		return ""
	}
	return r.more.reason
}

// Index sums up the shard's index; zero if it has none.
func (r *Record) Index() shard.IndexInfo {
	if r.more == nil {
		return shard.IndexInfo{}
	}
	return r.more.index
}

// State returns the whole durable state.
func (r *Record) State() shard.State {
	return shard.State{
		Life: r.life, Lazy: r.lazy, URL: r.url(), Transient: r.transient(), Reason: r.Reason(), Index: r.Index(),
	}
}

// Lazy says whether the shard was registered with lazy initialisation.
func (r *Record) Lazy() bool { return r.lazy }
