package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	carv2 "github.com/ipld/go-car/v2"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
)

// pass goes once through the CAR.
type pass struct {
	name, does string
	run        func() error
}

const bufferLen = 1 << 20

// measureWhole measures what goes through a shard from its beginning to its end.
func measureWhole(ctx context.Context, cfg config, dir string, progress io.Writer) (_ []table, err error) {
	var open closers
	defer func() { err = errors.Join(err, open.close()) }()
	car, err := writeCAR(filepath.Join(dir, "blocks.car"), cfg.blocks, blockLen, 6)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(car.path)
	if err != nil {
		return nil, err
	}
	open.add(f.Close)
	walking, err := walks(ctx, dir, car, f, &open)
	if err != nil {
		return nil, err
	}
	indexing, err := indexings(ctx, dir, car, f)
	if err != nil {
		return nil, err
	}
	input := fmt.Sprintf("A CARv1 of %s random blocks of 1 KiB (%s), in the page cache.", grouped(cfg.blocks), bytesUnit.format(float64(car.size)))
	walked, err := passes(ctx, cfg, car, walking, progress)
	if err != nil {
		return nil, err
	}
	indexed, err := passes(ctx, cfg, car, indexing, progress)
	if err != nil {
		return nil, err
	}
	return []table{
		{
			title: "All blocks of a shard in the order of the file", inputs: input + " One goroutine.", rows: walked,
			columns: []column{{title: "read", unit: throughputUnit, chart: "All blocks of a shard, in the order of the file"}},
		},
		{
			title: "Indexing a shard", inputs: input + " As many goroutines as the subject uses by itself.", rows: indexed,
			columns: []column{{title: "indexed", unit: throughputUnit, chart: "Indexing a shard"}},
		},
	}, nil
}

// passes measures the passes in turn, in bytes of the file a second.
func passes(ctx context.Context, cfg config, car carFile, all []pass, progress io.Writer) ([]row, error) {
	rates := make([][]float64, len(all))
	for range cfg.rounds {
		for i, p := range all {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			heap() // what the one before left is not collected on the time of this one
			took, err := timed(p.run)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			rates[i] = append(rates[i], float64(car.size)/took.Seconds())
		}
	}
	var rows []row
	for i, p := range all {
		rows = append(rows, row{name: p.name, does: p.does, ours: isOurs(p.name), runs: cfg.rounds, cells: []float64{median(rates[i])}})
		fmt.Fprintf(progress, "  %-48s %12s\n", p.name, throughputUnit.format(rows[i].cells[0]))
	}
	return rows, nil
}

// plain reads the file from its beginning to its end.
func plain(car carFile, f *os.File, hash bool) func() error {
	return func() error {
		out := io.Discard
		if hash {
			out = sha256.New()
		}
		// Hidden behind plain interfaces, so that neither side does without the buffer.
		n, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{io.NewSectionReader(f, 0, car.size)}, make([]byte, bufferLen))
		if err == nil && n != car.size {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
}

func walks(ctx context.Context, dir string, car carFile, f *os.File, open *closers) ([]pass, error) {
	all := []pass{
		{"read", "the file in pieces of 1 MiB; the baseline", plain(car, f, false)},
		{"read + SHA-256", "the same, and one hash of all of it", plain(car, f, true)},
	}
	for _, verified := range []bool{false, true} {
		how := map[bool]string{false: "unverified", true: "verified"}[verified]
		acc, err := accessor(ctx, filepath.Join(dir, how), car.path, false, verified, open)
		if err != nil {
			return nil, err
		}
		ours, err := ourWalks(ctx, car, acc, how)
		if err != nil {
			return nil, err
		}
		all = append(all, ours...)
		if !verified {
			all = append(all, pass{"dagstore: Reader", "the bytes of the file through the accessor, in pieces of 1 MiB", readerWalk(car, acc)})
		}
	}
	for _, trusted := range []bool{true, false} {
		how := map[bool]string{true: "unverified", false: "verified"}[trusted]
		all = append(all, pass{"go-car BlockReader, " + how, "Next until the end, over a buffer of 1 MiB; needs no index and finds no block by its CID", blockReaderWalk(car, f, trusted)})
	}
	return all, nil
}

// ourWalks read the blocks by their CIDs, one by one and a thousand at a time.
func ourWalks(ctx context.Context, car carFile, acc *dagstore.ShardAccessor, how string) ([]pass, error) {
	blocks, err := acc.Blockstore()
	if err != nil {
		return nil, err
	}
	bs := blocks.(*dagstore.ShardBlockstore)
	return []pass{
		{"dagstore: View of each, " + how, "every CID looked up in the order of the file, its block read and looked at", func() error {
			for _, c := range car.cids {
				if err := acc.View(ctx, c, func(p []byte) error { return wantLength(len(p)) }); err != nil {
					return err
				}
			}
			return nil
		}},
		{"dagstore: ViewMany, " + how, "1,000 CIDs at a time, in the order of the file", func() error {
			for some := range slices.Chunk(car.cids, 1000) {
				if err := bs.ViewMany(ctx, some, func(_ int, p []byte, err error) error { return errors.Join(err, wantLength(len(p))) }); err != nil {
					return err
				}
			}
			return nil
		}},
		{"dagstore: GetMany, " + how, "the same, into memory of its own", func() error {
			for some := range slices.Chunk(car.cids, 1000) {
				if _, err := bs.GetMany(ctx, some); err != nil {
					return err
				}
			}
			return nil
		}},
	}, nil
}

func readerWalk(car carFile, acc *dagstore.ShardAccessor) func() error {
	return func() error {
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{acc.Reader()}, make([]byte, bufferLen))
		if err == nil && n != car.size {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
}

func blockReaderWalk(car carFile, f *os.File, trusted bool) func() error {
	return func() error {
		br, err := carv2.NewBlockReader(bufio.NewReaderSize(io.NewSectionReader(f, 0, car.size), bufferLen), carv2.WithTrustedCAR(trusted))
		if err != nil {
			return err
		}
		n := 0
		for ; ; n++ {
			b, err := br.Next()
			if err == io.EOF {
				break
			}
			if err == nil {
				err = wantLength(len(b.RawData()))
			}
			if err != nil {
				return err
			}
		}
		if n != len(car.cids) {
			return fmt.Errorf("%d blocks, want %d", n, len(car.cids))
		}
		return nil
	}
}

func indexings(ctx context.Context, dir string, car carFile, f *os.File) ([]pass, error) {
	repo, err := index.NewFSRepo(filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	gen := uint64(0)
	build := func(skip bool) func() error {
		return func() error {
			draft, err := index.Build(ctx, f, car.size, index.BuildOptions{SkipVerify: skip})
			if err != nil {
				return err
			}
			gen++
			return repo.PutIndex(theShard, gen, draft)
		}
	}
	generate := func(r func() io.Reader) func() error {
		return func() error {
			_, err := carv2.GenerateIndex(r())
			return err
		}
	}
	section := func() *io.SectionReader { return io.NewSectionReader(f, 0, car.size) }
	return []pass{
		{"read", "the file in pieces of 1 MiB; the baseline", plain(car, f, false)},
		{"read + SHA-256", "the same, and one hash of all of it on one core", plain(car, f, true)},
		{"dagstore: Build, unverified", "structure and lengths checked, blocks not hashed; the index is sorted, written and durable", build(true)},
		{"dagstore: Build, verified", "the same, and every block hashed on all cores; the default", build(false)},
		{"go-car GenerateIndex", "over the file; blocks are not hashed; the index is in memory and not written", generate(func() io.Reader { return section() })},
		{"go-car GenerateIndex, buffered", "the same over a buffer of 1 MiB, so that it reads what it would skip", generate(func() io.Reader { return bufio.NewReaderSize(section(), bufferLen) })},
	}, nil
}
