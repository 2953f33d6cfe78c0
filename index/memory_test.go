package index

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

// pooled is one of several builds that share a pool.
type pooled struct {
	d     drafter
	plain drafter
	put   uint64
}

func (b *pooled) add(n uint64) error {
	for range n {
		rec := syntheticBlock(b.put)
		e := Entry{Offset: 29 + b.put*syntheticSection, HeaderLen: 37, Size: 8}
		if err := errors.Join(b.d.add(multihash.SHA2_256, rec[5:37], e), b.plain.add(multihash.SHA2_256, rec[5:37], e)); err != nil {
			return err
		}
		b.put++
	}
	return nil
}

// TestPooledBuilds: builds that share a pool hold no more than it has and 1 MiB each,
// in whatever order they go on, and each gets its index. Proves I15, I16.
func TestPooledBuilds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const size = 3 << 20
		pool := NewMemoryPool(size)
		repo := simRepo(t, fsio.NewSim(1))
		builds := make([]*pooled, rapid.IntRange(2, 4).Draw(rt, "builds"))
		for i := range builds {
			create := func() (ScratchFile, error) { return repo.CreateScratch(spillKey, uint64(i)) }
			builds[i] = &pooled{d: drafter{ctx: t.Context(), spill: newSpill(&BuildOptions{Memory: size, Pool: pool, Spill: create})}}
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			b := builds[rapid.IntRange(0, len(builds)-1).Draw(rt, "build")]
			if err := b.add(rapid.SampledFrom([]uint64{10, 1000, 20000}).Draw(rt, "records")); err != nil {
				rt.Fatal(err)
			}
			sum, held := 0, 0
			for _, b := range builds {
				sum += b.d.spill.share.have
				held += b.d.need(0, 0)
				if have := b.d.need(0, 0); have > leastMemory+b.d.spill.share.have {
					rt.Fatalf("%d bytes held, with a share of %d", have, b.d.spill.share.have)
				}
			}
			if sum != pool.mu.taken || sum > size || held > size+len(builds)*leastMemory {
				rt.Fatalf("shares of %d, %d taken of %d, %d held", sum, pool.mu.taken, size, held)
			}
		}
		for i, b := range builds {
			have, err := b.d.draft(header{flags: flagUnbound})
			if err != nil {
				rt.Fatal(err)
			}
			if have := b.d.spill.share.have; have != 0 && !b.d.spill.runs.empty() {
				rt.Fatalf("all is in runs, and %d bytes are kept from others", have)
			}
			if !bytes.Equal(encodeDraft(t, have), encodeDraft(t, b.plain.finish(header{flags: flagUnbound}))) {
				rt.Fatalf("build %d has another index", i)
			}
			if err := errors.Join(have.Close(), have.Close()); err != nil {
				rt.Fatal(err)
			}
		}
		if pool.mu.taken != 0 || pool.mu.users != 0 {
			rt.Fatalf("%d bytes are taken by nobody, %d users", pool.mu.taken, pool.mu.users)
		}
	})
}

// TestPoolIsShared: a build that has the whole pool makes room for another that wants
// its part, and has it all again afterwards. Proves I16.
func TestPoolIsShared(t *testing.T) {
	const size = 8 << 20
	pool := NewMemoryPool(size)
	repo := simRepo(t, fsio.NewSim(1))
	build := func(key string) *pooled {
		create := func() (ScratchFile, error) { return repo.CreateScratch(shard.KeyFromString(key), 1) }
		return &pooled{d: drafter{ctx: t.Context(), spill: newSpill(&BuildOptions{Memory: size, Pool: pool, Spill: create})}}
	}
	add := func(b *pooled, n uint64) {
		t.Helper()
		if err := b.add(n); err != nil {
			t.Fatal(err)
		}
	}
	first, second := build("first"), build("second")
	add(first, 300_000)
	if have := first.d.spill.share.have; have < size/2 {
		t.Fatalf("alone: %d of %d", have, size)
	}
	before := first.d.spill.runs.seq
	for range 40 {
		add(second, 5000)
		add(first, 5000)
	}
	one, two := first.d.spill.share.have, second.d.spill.share.have
	if one < size/5 || one > size/2 || two < size/5 || two > size/2 {
		t.Errorf("two builds have %d and %d of %d", one, two, size)
	}
	runs := []uint32{first.d.spill.runs.seq - before, second.d.spill.runs.seq}
	if slices.Max(runs) > 8 {
		t.Errorf("%d runs for 200,000 records each", runs)
	}
	second.d.close()
	add(first, 300_000)
	if have := first.d.spill.share.have; have < size/2 {
		t.Errorf("alone again: %d of %d", have, size)
	}
	first.d.close()
	if pool.mu.taken != 0 || pool.mu.users != 0 {
		t.Error(fmt.Sprint(pool.mu.taken, pool.mu.users))
	}
}

// TestShareShrinks: a build that had much and is left with little goes on with that, and
// does not spill record by record because its memory is taken up by what was useful
// before. Proves I16.
func TestShareShrinks(t *testing.T) {
	const size = 32 << 20
	pool := NewMemoryPool(size)
	repo := simRepo(t, fsio.NewSim(1))
	builds := make([]*pooled, 8)
	for i := range builds {
		create := func() (ScratchFile, error) { return repo.CreateScratch(spillKey, uint64(i)) }
		builds[i] = &pooled{d: drafter{ctx: t.Context(), spill: newSpill(&BuildOptions{Memory: size, Pool: pool, Spill: create})}}
		defer builds[i].d.close()
	}
	first := builds[0]
	if err := first.add(600_000); err != nil {
		t.Fatal(err)
	}
	if first.d.spill.runs.seq == 0 {
		t.Fatal("it had room for everything")
	}
	for range 20 {
		for _, b := range builds {
			if err := b.add(7000); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, b := range builds {
		if runs := b.d.spill.runs.seq; runs < 1 || runs > 10 {
			t.Errorf("build %d wrote %d runs", i, runs)
		}
	}
}
