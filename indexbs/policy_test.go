package indexbs_test

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/shard"
)

func drawCandidates(t *rapid.T) []indexbs.Candidate {
	now := time.Unix(1000, 0)
	n := rapid.IntRange(2, 8).Draw(t, "n")
	cs := make([]indexbs.Candidate, n)
	for i := range cs {
		c := &cs[i]
		c.Key = shard.KeyFromString(fmt.Sprint("shard ", i))
		c.Open = rapid.Bool().Draw(t, "open")
		c.Local = indexbs.Locality(rapid.IntRange(-1, 1).Draw(t, "local"))
		c.Blocks = rapid.IntRange(1, 3).Draw(t, "blocks")
		if rapid.Bool().Draw(t, "failed") {
			c.Failure = errors.New("failed")
			c.FailedAt = now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "ago")) * time.Second)
		}
	}
	return cs
}

// rank is the default policy, written as a tuple.
func rank(a, b indexbs.Candidate) int {
	num := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(num(a.Failure == nil), num(b.Failure == nil)), a.FailedAt.Compare(b.FailedAt),
		-cmp.Compare(a.Blocks, b.Blocks), cmp.Compare(num(a.Open), num(b.Open)),
		-cmp.Compare(a.Local, b.Local), a.Key.Compare(b.Key))
}

// TestDefaultPolicy: the default policy takes the least candidate by rank, in whatever
// order they come, and gives a reason for each that it does not take and for none that
// it does.
func TestDefaultPolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cs := drawCandidates(t)
		want := slices.MinFunc(cs, rank)
		cs = rapid.Permutation(cs).Draw(t, "order")
		got, err := indexbs.DefaultPolicy().Choose(cid.Undef, cs)
		if err != nil || got != want.Key {
			t.Fatalf("chose %s, %v; want %s of %+v", got, err, want.Key, cs)
		}
		for _, c := range cs {
			if (c.Reason == "") != (c.Key == got) {
				t.Fatalf("%s was chosen, and the reason of %s is %q", got, c.Key, c.Reason)
			}
		}
	})
}

// TestPreferences: each preference by itself, and the reasons that they give.
func TestPreferences(t *testing.T) {
	older, newer := time.Unix(1, 0), time.Unix(2, 0)
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		p      indexbs.Policy
		a, b   indexbs.Candidate // a, whose key comes first, is not taken
		reason string
	}{
		"open":     {indexbs.Prefer(indexbs.OpenFirst), indexbs.Candidate{}, indexbs.Candidate{Open: true}, "it would have to be opened first"},
		"local":    {indexbs.Prefer(indexbs.LocalFirst), indexbs.Candidate{}, indexbs.Candidate{Local: indexbs.Local}, "its bytes are not known to be local"},
		"unknown":  {indexbs.Prefer(indexbs.LocalFirst), indexbs.Candidate{Local: indexbs.Remote}, indexbs.Candidate{}, "its bytes are not known to be local"},
		"healthy":  {indexbs.Prefer(indexbs.HealthyFirst), indexbs.Candidate{Failure: failed, FailedAt: older}, indexbs.Candidate{}, "it failed lately"},
		"longer":   {indexbs.Prefer(indexbs.HealthyFirst), indexbs.Candidate{Failure: failed, FailedAt: newer}, indexbs.Candidate{Failure: failed, FailedAt: older}, "it failed lately"},
		"fullest":  {indexbs.Prefer(indexbs.FullestFirst), indexbs.Candidate{Blocks: 1}, indexbs.Candidate{Blocks: 2}, "it holds fewer of the blocks"},
		"in order": {indexbs.Prefer(indexbs.LocalFirst, indexbs.OpenFirst), indexbs.Candidate{Open: true}, indexbs.Candidate{Local: indexbs.Local}, "its bytes are not known to be local"},
		"default":  {indexbs.DefaultPolicy(), indexbs.Candidate{Failure: failed, Open: true, Local: indexbs.Local, Blocks: 9}, indexbs.Candidate{Blocks: 1}, "it failed lately"},
	} {
		c.a.Key, c.b.Key = shard.KeyFromString("a"), shard.KeyFromString("b")
		cs := []indexbs.Candidate{c.a, c.b}
		got, err := c.p.Choose(cid.Undef, cs)
		if err != nil || got != c.b.Key || cs[0].Reason != c.reason {
			t.Errorf("%s: chose %s, %v, because %q", name, got, err, cs[0].Reason)
		}
	}
	cs := []indexbs.Candidate{{Key: shard.KeyFromString("b")}, {Key: shard.KeyFromString("a")}}
	if got, _ := indexbs.Prefer().Choose(cid.Undef, cs); got != cs[1].Key || cs[0].Reason != "it is as good, and its key comes later" {
		t.Errorf("of two alike: %s, because %q", got, cs[0].Reason)
	}
	if n := testing.AllocsPerRun(100, func() { indexbs.DefaultPolicy().Choose(cid.Undef, cs) }); n > 1 {
		t.Errorf("%g allocations", n)
	}
}

// TestPolicyIsAskedWhenThereIsAChoice: not about a single shard, unless it may decline;
// with what is known of each; and again with those that are left.
func TestPolicyIsAskedWhenThereIsAChoice(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": carOf(c, data), "b": carOf(c, data), "c": carOf(c, data), "alone": carOf(missing, []byte("nowhere"))})
	f.shard("a").fail = errors.New("failed")
	var asked [][]indexbs.Candidate
	p := policyFunc(func(_ cid.Cid, cs []indexbs.Candidate) (shard.Key, error) {
		asked = append(asked, slices.Clone(cs))
		return cs[0].Key, nil
	})
	located := locatingStore{f, map[string]bool{"b": true}}
	bs := newWith(t, located, indexbs.Options{Policy: p})
	if _, err := bs.Get(t.Context(), missing); err != nil || len(asked) != 0 {
		t.Errorf("of a single shard the policy was asked %v; %v", asked, err)
	}
	if _, err := bs.Get(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 2 || len(asked[0]) != 3 || len(asked[1]) != 2 {
		t.Fatalf("the policy was asked %v", asked)
	}
	for i, want := range []indexbs.Candidate{
		{Key: shard.KeyFromString("a"), Local: indexbs.Remote, Blocks: 1},
		{Key: shard.KeyFromString("b"), Local: indexbs.Local, Blocks: 1},
		{Key: shard.KeyFromString("c"), Local: indexbs.Remote, Blocks: 1},
	} {
		if got := asked[0][i]; got != want {
			t.Errorf("candidate %d: %+v, want %+v", i, got, want)
		}
	}
	asked = nil
	if _, err := bs.Get(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || len(asked[0]) != 2 || !asked[0][0].Open || asked[0][1].Open || asked[0][0].Local != indexbs.Unknown {
		t.Errorf("with one open, and one that failed: %+v", asked)
	}

	none := newWith(t, f, indexbs.Options{Policy: declining{}})
	checkAbsent(t, none, missing, indexbs.ErrNoShardSelected)
}

type policyFunc func(cid.Cid, []indexbs.Candidate) (shard.Key, error)

func (p policyFunc) Choose(c cid.Cid, cs []indexbs.Candidate) (shard.Key, error) { return p(c, cs) }

type declining struct{}

func (declining) Declines() bool { return true }
func (declining) Choose(cid.Cid, []indexbs.Candidate) (shard.Key, error) {
	return shard.Key{}, indexbs.ErrNoShardSelected
}

// locatingStore knows which shards are local.
type locatingStore struct {
	*fakeStore
	local map[string]bool
}

func (s locatingStore) LocalShards(keys []shard.Key) ([]bool, error) {
	out := make([]bool, len(keys))
	for i, k := range keys {
		out[i] = s.local[k.String()]
	}
	return out, nil
}

// TestLocalFirstOverStores: of shards that are not open the one that is local is read.
func TestLocalFirstOverStores(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": carOf(c, data), "b": carOf(c, data), "c": carOf(c, data)})
	bs := newWith(t, locatingStore{f, map[string]bool{"c": true}}, indexbs.Options{})
	x, remembered, err := bs.Explain(t.Context(), c)
	if err != nil || len(remembered) != 0 || len(x) != 3 || x[0].Key.String() != "c" || x[0].Reason != "" || x[1].Reason != "its bytes are not known to be local" {
		t.Errorf("explained as %+v, %v, %v", x, remembered, err)
	}
	if err := checkBlock(t.Context(), bs, c, data); err != nil {
		t.Fatal(err)
	}
	if n := f.shard("c").opened.Load(); n != 1 || f.count() != 1 {
		t.Errorf("the local shard was opened %d times; %d acquires", n, f.count())
	}
}

// TestOptions: what cannot be is refused.
func TestOptions(t *testing.T) {
	f := newFakeStore(t, nil)
	past := indexbs.Options{Consistency: new(asOfSomething())}
	if _, err := indexbs.New(t.Context(), f, past); err == nil {
		t.Error("lookups of the past: accepted")
	}
	if _, err := indexbs.New(t.Context(), f, indexbs.Options{HotBlocks: math.MaxInt}); err == nil {
		t.Error("too many hot blocks: accepted")
	}
	if _, err := indexbs.New(t.Context(), nil, indexbs.Options{}); err == nil {
		t.Error("no store: accepted")
	}
}
