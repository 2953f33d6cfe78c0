package toplevel

import "testing"

// popularIngests have the same multihash.
const popularIngests = 3000

func popular(tb testing.TB) *Index {
	x := must(Open(tb.TempDir(), Options{}, Hooks{}))
	tb.Cleanup(func() { x.Close() })
	for n := range popularIngests {
		if err := x.Add(tb.Context(), ingestNo(n), among{7, uint64(n) + 1000}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := x.Flush(nil); err != nil {
		tb.Fatal(err)
	}
	return x
}

// TestPopular: of a multihash that very many ingests have a lookup finds all, each once,
// and ends when it is told to, wherever that is.
func TestPopular(t *testing.T) {
	x := popular(t)
	if st := x.Stats(); st.MemoryEntries != 0 || st.Runs != 1 {
		t.Fatalf("not in one run on disk: %+v", st)
	}
	if got := gens(t, x, 7); len(got) != popularIngests || got[0] != 1 || got[popularIngests-1] != popularIngests {
		t.Errorf("%d ingests found, want %d", len(got), popularIngests)
	}
	for _, most := range []int{1, 2, someIngests - 1, someIngests, someIngests + 1, popularIngests - 1} {
		n := 0
		if err := x.Lookup(hash(7, nil), func(Ingest) bool { n++; return n < most }); err != nil || n != most {
			t.Errorf("visited %d, told to stop after %d: %v", n, most, err)
		}
	}
	if got := gens(t, x, 1000); len(got) != 1 {
		t.Errorf("a multihash of one ingest: %v", got)
	}
}

// BenchmarkPopular looks for one of 3,000 ingests that have a multihash, in a run on disk.
func BenchmarkPopular(b *testing.B) {
	x := popular(b)
	h := hash(7, nil)
	b.ReportAllocs()
	for b.Loop() {
		if err := x.Lookup(h, func(Ingest) bool { return false }); err != nil {
			b.Fatal(err)
		}
	}
}
