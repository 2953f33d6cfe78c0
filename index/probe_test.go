package index

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
)

// evenRecords are n records with digests as a hash function makes them, some twice.
func evenRecords(n int) []record {
	rng := rand.New(rand.NewPCG(uint64(n), 9))
	out := make([]record, n)
	for i := range out {
		digest := make([]byte, 32)
		for j := range digest {
			digest[j] = byte(rng.Uint32())
		}
		mh := string(hostile.Mh(multihash.SHA2_256, digest))
		if i > 0 && rng.IntN(20) == 0 {
			mh = out[rng.IntN(i)].mh
		}
		out[i] = record{mh, Entry{Offset: uint64(i) * 100, HeaderLen: 38, Size: i + 1}}
	}
	return out
}

// TestProbeAnswers sees that lookups with evenly spread digests are answered by the
// probe and not by the search behind it, at every size around those of a page and of
// the smallest fan-out, and as a map would answer. Proves F20.
func TestProbeAnswers(t *testing.T) {
	sizes := []int{1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 20_000}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			records := evenRecords(n)
			first := make(map[string]Entry)
			for _, r := range records {
				if _, ok := first[r.mh]; !ok {
					first[r.mh] = r.e
				}
			}
			x, err := openBytes(encodeDraft(t, draftRecords(t, records)), "even")
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			missed := 0
			look := func(mh string) {
				g, digest, err := x.core.group([]byte(mh))
				if err != nil {
					t.Fatal(err)
				}
				want, present := first[mh]
				f, ok, err := x.core.probe(g, digest, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					missed++
				} else if f.match != present || f.entry != want {
					t.Fatalf("probe of %x: %+v, want %+v, %t", mh, f, want, present)
				}
				for _, find := range []func(string) (Entry, bool, error){x.Find, x.FindChecked} {
					if e, found, err := find(mh); err != nil || found != present || e != want {
						t.Fatalf("lookup of %x: %+v, %t, %v; want %+v, %t", mh, e, found, err, want, present)
					}
				}
			}
			for _, r := range records {
				look(r.mh)
				absent := []byte(r.mh)
				absent[2+len(r.mh)%30] ^= 1
				look(string(absent))
			}
			for _, b := range []byte{0, 0xff} { // before the first record and behind the last
				edge := make([]byte, 32)
				for i := range edge {
					edge[i] = b
				}
				look(string(hostile.Mh(multihash.SHA2_256, edge)))
			}
			if n > 33 && missed > n/100 || n <= 16 && missed > 0 {
				t.Errorf("the probe gave up on %d of %d lookups", missed, 2*n)
			}
		})
	}
}

// TestRotAfterChecks flips every bit of an index under an open ShardIndex whose pages
// were all found sound before. "Not found" is told of no block that is there, and
// FindChecked has the right entry or says what is damaged. Proves F20, C10.
func TestRotAfterChecks(t *testing.T) {
	records := evenRecords(40)
	want := make(map[string]Entry)
	for _, r := range records {
		if _, ok := want[r.mh]; !ok {
			want[r.mh] = r.e
		}
	}
	b := encodeDraft(t, draftRecords(t, records))
	x, err := openBytes(b, "rotting")
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	damaged := func(err error) bool {
		var d *DamagedError
		return errors.As(err, &d)
	}
	noticed := 0
	for at := x.core.length; int(at) < len(b); at++ {
		for bit := range 8 {
			for mh, e := range want { // all pages are sound
				if have, found, err := x.Find(mh); err != nil || !found || have != e {
					t.Fatalf("before: %+v, %t, %v", have, found, err)
				}
			}
			b[at] ^= 1 << bit
			for mh, e := range want {
				if _, found, err := x.Find(mh); !found && !damaged(err) {
					t.Fatalf("bit %d of byte %d flipped: block not found, error %v", bit, at, err)
				}
				have, found, err := x.FindChecked(mh)
				if (!found || have != e || err != nil) && !damaged(err) {
					t.Fatalf("bit %d of byte %d flipped: FindChecked: %+v, %t, %v; want %+v", bit, at, have, found, err, e)
				}
				if err != nil {
					noticed++
				}
			}
			b[at] ^= 1 << bit
		}
	}
	if noticed == 0 {
		t.Error("no damage was noticed")
	}
}
