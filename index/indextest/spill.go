package indextest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/shard"
)

// Spiller tests what every LifeRepo that is a Spiller promises.
func Spiller(t *testing.T, open func(t *testing.T) index.LifeRepo) {
	spiller := func(r index.LifeRepo) index.Spiller {
		s, ok := r.(index.Spiller)
		if !ok {
			t.Fatalf("%T is no index.Spiller", r)
		}
		return s
	}
	t.Run("files", func(t *testing.T) { scratchFiles(t, spiller(open(t))) })
	t.Run("build", func(t *testing.T) {
		r := open(t)
		spilledBuild(t, r, spiller(r))
	})
	t.Run("bad keys", func(t *testing.T) {
		if _, err := spiller(open(t)).CreateScratch(shard.KeyFromString("\xff"), 1); !errors.Is(err, shard.ErrInvalidKey) {
			t.Error(err)
		}
	})
}

// scratchFiles: the files of one life are apart from each other and are spared by
// sweeps, whether the life is alive or not.
func scratchFiles(t *testing.T, s index.Spiller) {
	for _, key := range Keys() {
		var files []index.ScratchFile
		for i := range 3 {
			f, err := s.CreateScratch(key, 7)
			if err != nil {
				t.Fatalf("key %q: %v", key, err)
			}
			if _, err := f.WriteAt([]byte{byte(i)}, 100); err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		if n, err := s.(index.LifeRepo).SweepIndexes(func(uint64) bool { return false }); n != 0 || err != nil {
			t.Errorf("key %q: a sweep removed %d of what is in use: %v", key, n, err)
		}
		for i, f := range files {
			var b [1]byte
			if n, err := f.ReadAt(b[:], 100); n != 1 || b[0] != byte(i) {
				t.Errorf("key %q, file %d: %d, %v", key, i, b[0], err)
			}
			if err := errors.Join(f.Truncate(0), f.Close(), f.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	if n, err := s.(index.LifeRepo).SweepIndexes(func(uint64) bool { return false }); n != 0 || err != nil {
		t.Errorf("Close left %d files: %v", n, err)
	}
}

// spilledBuild: an index that was spilled is the one that it would have been. What a
// context ended has changed nothing.
func spilledBuild(t *testing.T, r index.LifeRepo, s index.Spiller) {
	key := shard.KeyFromString("spilled")
	car := CAR(3, 40_000)
	spilled := false
	d, err := index.Build(t.Context(), bytes.NewReader(car), int64(len(car)), index.BuildOptions{
		SkipVerify: true, Memory: 1, Spill: func() (index.ScratchFile, error) {
			spilled = true
			return s.CreateScratch(key, 2)
		},
	})
	if err != nil || !spilled {
		t.Fatalf("spilled: %v, %v", spilled, err)
	}
	if p, ok := r.(index.PutterContext); ok {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.PutIndexContext(ended, key, 2, d); !errors.Is(err, context.Canceled) {
			t.Errorf("a context that has ended: %v", err)
		}
		if _, err := r.OpenIndex(key, 2); err != index.ErrNotFound {
			t.Errorf("after that: %v", err)
		}
	}
	if err := errors.Join(r.PutIndex(key, 2, d), r.PutIndex(key, 3, Draft(t, 3, 40_000)), d.Close()); err != nil {
		t.Fatal(err)
	}
	var entries [2][]index.Entry
	for i := range entries {
		x, err := r.OpenIndex(key, uint64(2+i))
		if err != nil {
			t.Fatal(err)
		}
		err = x.Entries(func(_ multihash.Multihash, e index.Entry) error {
			entries[i] = append(entries[i], e)
			return nil
		})
		if err := errors.Join(err, x.Verify(t.Context()), x.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range entries[0] {
		if e != entries[1][i] {
			t.Fatalf("entry %d is %+v, want %+v", i, e, entries[1][i])
		}
	}
	if n, err := r.SweepIndexes(func(gen uint64) bool { return gen == 2 || gen == 3 }); n != 0 || err != nil {
		t.Errorf("%d files are left: %v", n, err)
	}
}
