package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	boxostore "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	flatfs "github.com/ipfs/go-ds-flatfs"
	dsleveldb "github.com/ipfs/go-ds-leveldb"
	carv2 "github.com/ipld/go-car/v2"
	carstore "github.com/ipld/go-car/v2/blockstore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
)

// closers close what was opened, last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c closers) close() (err error) {
	for i := len(c) - 1; i >= 0; i-- {
		err = errors.Join(err, c[i]())
	}
	return err
}

func measureReads(ctx context.Context, cfg config, dir string, progress io.Writer) (_ []table, err error) {
	var open closers
	defer func() { err = errors.Join(err, open.close()) }()
	car, err := writeCAR(filepath.Join(dir, "blocks.car"), cfg.blocks, blockLen, 6)
	if err != nil {
		return nil, err
	}
	subjects, err := readers(ctx, cfg, dir, car, &open)
	if err != nil {
		return nil, err
	}
	rates, allocs, err := inTurn(ctx, cfg, 2, subjects, progress)
	if err != nil {
		return nil, err
	}
	t := table{
		title: "Reading blocks of 1 KiB in a random order",
		inputs: fmt.Sprintf("A CARv1 of %s random blocks of 1 KiB (%s), or the same blocks in the store named. Two goroutines. The files are in the page cache.",
			grouped(cfg.blocks), bytesUnit.format(float64(car.size))),
		columns: []column{
			{title: "blocks", unit: perSecondUnit, chart: "Reading blocks of 1 KiB in a random order"},
			{title: "allocations a block", unit: countUnit, absolute: true},
		},
	}
	for i, s := range subjects {
		t.rows = append(t.rows, row{name: s.name, does: s.does, ours: isOurs(s.name), runs: cfg.rounds, cells: []float64{rates[i], allocs[i]}})
	}
	return []table{t}, nil
}

func readers(ctx context.Context, cfg config, dir string, car carFile, open *closers) ([]subject, error) {
	f, err := os.Open(car.path)
	if err != nil {
		return nil, err
	}
	open.add(f.Close)
	order := shuffled(len(car.cids))
	subjects := []subject{
		{"pread", "ReadAt of 1 KiB at a known place; the baseline", preads(f, car, order, false)},
		{"pread + SHA-256", "the same, and its hash compared", preads(f, car, order, true)},
	}
	for _, calls := range []bool{true, false} {
		for _, verified := range []bool{false, true} {
			how := map[bool]string{false: "unverified", true: "verified"}[verified]
			does := map[bool]string{false: "hashing turned off (SkipVerifyOnRead)", true: "every block is hashed, the default"}[verified]
			reads := "read the first time, then copied out of a mapping, the default,"
			if calls {
				how = "by system calls, " + how
				reads = "read each time (SkipMapSources)"
			}
			acc, err := accessor(ctx, filepath.Join(dir, how), car.path, calls, verified, open)
			if err != nil {
				return nil, err
			}
			bs, err := acc.Blockstore()
			if err != nil {
				return nil, err
			}
			subjects = append(subjects,
				subject{"dagstore: View, " + how, "index lookup, " + reads + " into a buffer that is used again; " + does, views(ctx, acc, car, order)},
				subject{"dagstore: Get, " + how, "index lookup, " + reads + " into memory of its own; " + does, gets(ctx, bs, car, order)})
		}
	}
	foreign, err := foreignStores(ctx, cfg, dir, car, f, open)
	if err != nil {
		return nil, err
	}
	for _, s := range foreign {
		subjects = append(subjects, subject{s.name, s.does, gets(ctx, s.blocks, car, order)})
	}
	return subjects, nil
}

func preads(f *os.File, car carFile, order []int, hash bool) func() (operation, error) {
	return func() (operation, error) {
		p := make([]byte, blockLen)
		return func(n int) error {
			i := order[n%len(order)]
			if _, err := f.ReadAt(p, car.at[i]); err != nil {
				return err
			}
			if hash && sha256.Sum256(p) != car.sums[i] {
				return fmt.Errorf("block %d is corrupt", i)
			}
			return nil
		}, nil
	}
}

// accessor opens a store with the CAR as its one shard.
func accessor(ctx context.Context, dir, path string, calls, verify bool, open *closers) (*dagstore.ShardAccessor, error) {
	s, err := dagstore.Open(ctx, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.SkipVerifyOnRead, c.SkipMapSources = !verify, calls }))
	if err != nil {
		return nil, err
	}
	open.add(s.Close)
	if _, err := s.RegisterShardSync(ctx, theShard, &mount.FileMount{Path: path}, dagstore.RegisterOpts{}); err != nil {
		return nil, err
	}
	acc, err := s.AcquireShardSync(ctx, theShard, dagstore.AcquireOpts{})
	if err == nil {
		open.add(acc.Close)
	}
	return acc, err
}

func views(ctx context.Context, acc *dagstore.ShardAccessor, car carFile, order []int) func() (operation, error) {
	return func() (operation, error) {
		see := func(p []byte) error { return wantLength(len(p)) }
		return func(n int) error { return acc.View(ctx, car.cids[order[n%len(order)]], see) }, nil
	}
}

// getter is what all blockstores can do.
type getter interface {
	Get(context.Context, cid.Cid) (blocks.Block, error)
}

func gets(ctx context.Context, bs getter, car carFile, order []int) func() (operation, error) {
	return func() (operation, error) {
		return func(n int) error {
			b, err := bs.Get(ctx, car.cids[order[n%len(order)]])
			if err != nil {
				return err
			}
			return wantLength(len(b.RawData()))
		}, nil
	}
}

func wantLength(n int) error {
	if n != blockLen {
		return fmt.Errorf("a block of %d bytes, want %d", n, blockLen)
	}
	return nil
}

// foreign is a blockstore of others.
type foreign struct {
	name, does string
	blocks     getter
}

func foreignStores(ctx context.Context, cfg config, dir string, car carFile, f *os.File, open *closers) ([]foreign, error) {
	v2 := filepath.Join(dir, "blocks-v2.car")
	if err := carv2.WrapV1File(car.path, v2); err != nil {
		return nil, err
	}
	mapped, err := carstore.OpenReadOnly(v2)
	if err != nil {
		return nil, err
	}
	open.add(mapped.Close)
	pread, err := carstore.NewReadOnly(f, mapped.Index())
	if err != nil {
		return nil, err
	}
	flat, err := flatfs.CreateOrOpen(filepath.Join(dir, "flatfs"), flatfs.NextToLast(2), false)
	if err != nil {
		return nil, err
	}
	open.add(flat.Close)
	level, err := dsleveldb.NewDatastore(filepath.Join(dir, "leveldb"), nil)
	if err != nil {
		return nil, err
	}
	open.add(level.Close)
	out := []foreign{
		{"go-car ReadOnly, mapped", "OpenReadOnly of the file as a CARv2 with its MultihashIndexSorted in memory; reads a mapping; never hashes", mapped},
		{"go-car ReadOnly, pread", "NewReadOnly over the open CARv1 with the same index, which is how the predecessor reads shards; never hashes", pread},
	}
	for _, s := range []struct {
		foreign
		store ds.Batching
	}{
		{foreign{name: "boxo blockstore on flatfs", does: "a file for each block (go-ds-flatfs, next-to-last/2); not hashed"}, flat},
		{foreign{name: "boxo blockstore on leveldb", does: "go-ds-leveldb with its defaults; not hashed"}, level},
	} {
		bs := boxostore.NewBlockstore(s.store, boxostore.NoPrefix())
		if err := copyBlocks(ctx, bs, car, f); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		s.blocks = bs
		out = append(out, s.foreign)
	}
	// Compactions of leveldb come to rest.
	if _, err := quiet(ctx, filepath.Join(dir, "leveldb"), cfg.rest); err != nil {
		return nil, err
	}
	return out, nil
}

// copyBlocks puts all blocks of the CAR into a blockstore.
func copyBlocks(ctx context.Context, bs boxostore.Blockstore, car carFile, f *os.File) error {
	const batch = 256
	var some []blocks.Block
	for i, c := range car.cids {
		p := make([]byte, blockLen)
		if _, err := f.ReadAt(p, car.at[i]); err != nil {
			return err
		}
		b, err := blocks.NewBlockWithCid(p, c)
		if err != nil {
			return err
		}
		if some = append(some, b); len(some) == batch || i == len(car.cids)-1 {
			if err := bs.PutMany(ctx, some); err != nil {
				return err
			}
			some = some[:0]
		}
	}
	return nil
}
