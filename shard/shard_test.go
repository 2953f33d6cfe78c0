package shard

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"
)

var keyCompare = cmpopts.EquateComparable(Key{})

func TestKeys(t *testing.T) {
	c := cid.MustParse("bafkreiactbvwkv7a2x62ikafbnxkccnduskysnxdibqwsjjpalgjlzkzta")
	for _, k := range []Key{KeyFromString("a"), KeyFromBytes([]byte{0, 1, 2}), KeyFromCID(c)} {
		if err := k.Validate(); err != nil {
			t.Errorf("%q: %v", k, err)
		}
		b, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		var back Key
		if err := json.Unmarshal(b, &back); err != nil || back != k {
			t.Errorf("%q came back as %q: %v", k, back, err)
		}
	}
	if got := KeyFromBytes([]byte{0, 1, 2}).String(); got != "15T" {
		t.Errorf("base58 is %q", got)
	}
	if KeyFromCID(c).String() != c.String() {
		t.Error("a CID's key is not its text")
	}
	var k Key
	if err := json.Unmarshal([]byte("7"), &k); err == nil {
		t.Error("a number became a key")
	}
}

// Proves F12: which keys there are.
func TestValidate(t *testing.T) {
	for _, s := range []string{"/", "../../etc/passwd", "\x00", "ключ", strings.Repeat("k", MaxKeyLen)} {
		if err := KeyFromString(s).Validate(); err != nil {
			t.Errorf("%.20q: %v", s, err)
		}
	}
	for _, s := range []string{"", "\xff", strings.Repeat("k", MaxKeyLen+1)} {
		if err := KeyFromString(s).Validate(); !errors.Is(err, ErrInvalidKey) {
			t.Errorf("%.20q: %v", s, err)
		}
	}
}

func TestNames(t *testing.T) {
	for l := range numLives {
		if l.String() == "" || l.String() == "invalid" {
			t.Errorf("life %d has no name", l)
		}
	}
	for k := EventRegistered; k < numKinds; k++ {
		if k.String() == "" || k.String() == "invalid" {
			t.Errorf("kind %d has no name", k)
		}
	}
	if Life(200).String() != "invalid" || Kind(0).String() != "invalid" || Kind(200).String() != "invalid" {
		t.Error("what is no life or kind has a name")
	}
}

// event draws any event that has a form.
func event(t *rapid.T) Event {
	e := Event{
		Seq:  rapid.Uint64Range(1, 1<<62).Draw(t, "seq"),
		Time: rapid.Int64().Draw(t, "time"),
		Kind: Kind(rapid.IntRange(1, int(numKinds)-1).Draw(t, "kind")),
		Key:  KeyFromString(rapid.StringN(1, -1, MaxKeyLen).Draw(t, "key")),
		State: State{
			Life:      Life(rapid.IntRange(0, int(numLives)-1).Draw(t, "life")),
			Lazy:      rapid.Bool().Draw(t, "lazy"),
			URL:       rapid.String().Draw(t, "url"),
			Transient: rapid.String().Draw(t, "transient"),
			Reason:    rapid.String().Draw(t, "reason"),
		},
	}
	e.Gen = rapid.Uint64Range(1, e.Seq).Draw(t, "gen")
	if rapid.Bool().Draw(t, "indexed") {
		x := &e.State.Index
		x.Blocks, x.PayloadBytes, x.SourceSize = rapid.Uint64().Draw(t, "blocks"), rapid.Uint64().Draw(t, "bytes"), rapid.Uint64().Draw(t, "size")
		copy(x.Digest[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
	}
	return e
}

// Proves G5: what is written of an event is what is read.
func TestEventRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := event(t)
		b := AppendEvent([]byte("before"), &e)
		var back Event
		rest, err := DecodeEvent(string(b[len("before"):])+"after", e.Seq, &back)
		if err != nil {
			t.Fatal(err)
		}
		if rest != "after" {
			t.Fatalf("%q is left", rest)
		}
		if diff := cmp.Diff(e, back, keyCompare); diff != "" {
			t.Fatal(diff)
		}
		for cut := range len(b) - len("before") {
			if _, err := DecodeEvent(string(b[len("before"):][:cut]), e.Seq, &back); !errors.Is(err, ErrBadEvent) {
				t.Fatalf("cut to %d bytes: %v", cut, err)
			}
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	e := Event{Seq: 9, Gen: 9, Kind: EventRegistered, Key: KeyFromString("k"), State: State{Life: Registered}}
	good := AppendEvent(nil, &e)
	for name, damage := range map[string]func([]byte) []byte{
		"kind 0":            func(b []byte) []byte { b[0] = 0; return b },
		"unknown kind":      func(b []byte) []byte { b[0] = 99; return b },
		"unknown life":      func(b []byte) []byte { b[1] = 99; return b },
		"unknown flag":      func(b []byte) []byte { b[2] = 0x80; return b },
		"born before 1":     func(b []byte) []byte { b[3] = 9; return b },
		"a key of 2^63":     func(b []byte) []byte { return append(b[:12], "\xff\xff\xff\xff\xff\xff\xff\xff\x7f"...) },
		"an endless varint": func(b []byte) []byte { return append(b[:12], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"...) },
	} {
		var back Event
		if _, err := DecodeEvent(string(damage(append([]byte(nil), good...))), 9, &back); !errors.Is(err, ErrBadEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Proves N1: the relation itself, case by case.
func TestCheckNext(t *testing.T) {
	after := map[Kind]Life{
		EventRegistered: Registered, EventIndexed: Available, EventFailed: Errored, EventRecovering: Recovering, EventDestroyed: None,
	}
	legal := map[Kind][]Life{
		EventRegistered: {None},
		EventIndexed:    {Registered, Recovering},
		EventFailed:     {Registered, Available, Recovering},
		EventRecovering: {Registered, Initialising, Available, Errored, Recovering},
		EventDestroyed:  {Registered, Initialising, Available, Errored, Recovering},
	}
	for kind, to := range after {
		for from := range numLives {
			e := Event{Seq: 7, Gen: 3, Kind: kind, Key: KeyFromString("k"), State: State{Life: to}}
			if kind == EventRegistered {
				e.Gen = 7
			}
			want := false
			for _, l := range legal[kind] {
				want = want || l == from
			}
			if err := CheckNext(from, 3, &e); (err == nil) != want || err != nil && !errors.Is(err, ErrIllegal) {
				t.Errorf("%s after %s: %v", kind, from, err)
			}
			wrong := e
			wrong.Gen--
			if CheckNext(from, 3, &wrong) == nil {
				t.Errorf("%s after %s passes with a wrong generation", kind, from)
			}
			wrong = e
			wrong.State.Life = (to + 1) % numLives
			if CheckNext(from, 3, &wrong) == nil {
				t.Errorf("%s after %s passes with the wrong life after it", kind, from)
			}
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	e := Event{Seq: 9, Gen: 4, Kind: EventFailed, Key: KeyFromString("k"), State: State{Life: Errored, URL: "file:///a", Reason: "gone"}}
	f.Add(string(AppendEvent(nil, &e)))
	e.State.Index.Blocks = 7
	f.Add(string(AppendEvent(nil, &e)))
	f.Fuzz(func(t *testing.T, src string) {
		var e, again Event
		rest, err := DecodeEvent(src, 9, &e)
		if err != nil {
			return
		}
		// The form is not unique (varints may be long), but its meaning is.
		if _, err := DecodeEvent(string(AppendEvent(nil, &e)), 9, &again); err != nil || e != again {
			t.Fatalf("%+v became %+v: %v", e, again, err)
		}
		if !strings.HasSuffix(src, rest) {
			t.Fatalf("%q is left of %q", rest, src)
		}
	})
}

func BenchmarkDecodeEvent(b *testing.B) {
	e := Event{Seq: 9, Gen: 9, Kind: EventRegistered, Key: KeyFromString(strings.Repeat("k", 60)), State: State{Life: Registered, URL: strings.Repeat("u", 80)}}
	src := string(AppendEvent(nil, &e))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeEvent(src, 9, &e); err != nil {
			b.Fatal(err)
		}
	}
}

// TestKeyFormat: a key formats as its spelling under every verb; of one that no shard can
// have, because it is too long, the beginning and the length are told. Proves S10.
func TestKeyFormat(t *testing.T) {
	k := KeyFromString("a/b ä")
	for verb, want := range map[string]string{
		"%s": "a/b ä", "%v": "a/b ä", "%q": `"a/b ä"`, "%8.3s|": "     a/b|", "%+v": "a/b ä", "%x": "612f6220c3a4", "%#v": `shard.Key{str:"a/b ä"}`,
	} {
		if got := fmt.Sprintf(verb, k); got != want {
			t.Errorf("%s: %s, want %s", verb, got, want)
		}
	}
	long := KeyFromString(strings.Repeat("ä", 1<<19))
	for _, verb := range []string{"%s", "%q", "%v"} {
		if got := fmt.Sprintf(verb, long); len(got) > 150 || !strings.Contains(got, "(1048576 bytes)") {
			t.Errorf("%s: %.200s", verb, got)
		}
	}
	if fmt.Sprint(KeyFromString(strings.Repeat("k", MaxKeyLen))) != strings.Repeat("k", MaxKeyLen) {
		t.Error("the longest key is cut")
	}
}
