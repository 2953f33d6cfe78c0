package fsio

import (
	"fmt"
	"os"
	"testing"
)

// What a journal does: append a frame, sync it.
func BenchmarkSimAppendSync(b *testing.B) {
	s := NewSim(1, TraceLimit(0))
	f, err := s.OpenFile("f", create, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	frame := make([]byte, 200)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%100_000 == 0 {
			if err := f.Truncate(0); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := f.WriteAt(frame, int64(i%100_000*len(frame))); err != nil {
			b.Fatal(err)
		}
		if err := f.SyncData(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSimReadAt(b *testing.B) {
	s := NewSim(1, TraceLimit(0))
	f, err := s.OpenFile("f", create, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1024)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := f.ReadAt(buf, int64(i*1024%(1<<20))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteFileAtomic(b *testing.B) {
	for name, fsys := range map[string]FS{"Sim": NewSim(1, TraceLimit(0)), "OS": OS()} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			if err := fsys.MkdirAll(dir, 0o700); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := WriteFileAtomic(fsys, dir+"/f", 0o600, writeString("contents")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A crash of a disk with a thousand files, a tenth of them with unsynced contents.
func BenchmarkSimCloneAndCrash(b *testing.B) {
	s := NewSim(1, TraceLimit(0))
	for i := range 1000 {
		name := fmt.Sprint("f", i)
		if err := WriteFileAtomic(s, name, 0o600, writeString(name)); err != nil {
			b.Fatal(err)
		}
		if i%10 == 0 {
			f, err := s.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := f.Write([]byte("unsynced")); err != nil {
				b.Fatal(err)
			}
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	for seed := uint64(0); b.Loop(); seed++ {
		s.Clone(seed).Crash()
	}
}
