package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/shard"
)

// smallBlock is the length of the blocks behind the shard index: they are not read.
const smallBlock = 32

// place is what an index says of a block.
type place struct{ offset, size uint64 }

// shardIndex is an index of one shard that can be opened.
type shardIndex struct {
	name, does string
	// open opens it and returns how to look a block up and how to close it.
	open func() (find func(n int) (bool, error), done func() error, err error)
}

func measureShardIndex(ctx context.Context, cfg config, dir string, progress io.Writer) ([]table, error) {
	car, err := writeCAR(filepath.Join(dir, "small.car"), cfg.records, smallBlock, 5)
	if err != nil {
		return nil, err
	}
	repo, theirs, err := indexBoth(ctx, dir, car)
	if err != nil {
		return nil, err
	}
	asked := askFor(car)
	all := shardIndexes(repo, theirs, car, asked)
	var rows []row
	var hits []subject
	opened := make([][]float64, len(all))
	for range cfg.rounds {
		for i, x := range all {
			took, err := timed(func() error {
				_, done, err := x.open()
				if err != nil {
					return err
				}
				return done()
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
			opened[i] = append(opened[i], took.Seconds())
			runtime.GC()
		}
	}
	var close []func() error
	for i, x := range all {
		before := heap()
		find, done, err := x.open()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.name, err)
		}
		close = append(close, done)
		rows = append(rows, row{name: x.name, does: x.does, ours: isOurs(x.name), runs: cfg.rounds, cells: []float64{median(opened[i]), max(heap()-before, 0), math.NaN()}})
		hits = append(hits, subject{name: x.name, worker: func() (operation, error) {
			return func(n int) error {
				found, err := find(n % asked.n)
				if err == nil && !found {
					err = errors.New("not found")
				}
				return err
			}, nil
		}})
	}
	rates, _, err := inTurn(ctx, cfg, 1, hits, progress)
	for _, done := range close {
		err = errors.Join(err, done())
	}
	for i := range rates {
		rows[i].cells[2] = 1 / rates[i]
	}
	return []table{{
		title: "Shard index: where in the shard is this block?",
		inputs: fmt.Sprintf("A CARv1 of %s blocks, indexed beforehand. Opened, then looked up by one goroutine: %s blocks that are there, in a random order, their multihashes lying in memory in that order. The files are in the page cache.",
			grouped(cfg.records), grouped(asked.n)),
		columns: []column{
			{title: "open", unit: secondsUnit},
			{title: "heap while open", unit: bytesUnit},
			{title: "look up", unit: secondsUnit, chart: "Shard index: look up a block"},
		},
		rows: rows,
	}}, err
}

// indexBoth writes dagstore's index and go-car's, and returns where they are.
func indexBoth(ctx context.Context, dir string, car carFile) (repo *index.FSIndexRepo, theirs string, err error) {
	f, err := os.Open(car.path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close() // was only read
	draft, err := index.Build(ctx, f, car.size, index.BuildOptions{})
	if err != nil {
		return nil, "", err
	}
	if repo, err = index.NewFSRepo(filepath.Join(dir, "ours")); err != nil {
		return nil, "", err
	}
	if err := repo.PutIndex(theShard, 1, draft); err != nil {
		return nil, "", err
	}
	x, err := repo.OpenIndex(theShard, 1)
	if err != nil {
		return nil, "", err
	}
	theirs = filepath.Join(dir, "go-car.idx")
	out, err := os.Create(theirs)
	if err != nil {
		return nil, "", errors.Join(err, x.Close())
	}
	_, err = carindex.WriteTo(x, out)
	return repo, theirs, errors.Join(err, out.Close(), x.Close())
}

var theShard = shard.KeyFromString("bench")

// asking is what is looked up.
type asking struct {
	n    int
	mhs  string
	cids []cid.Cid
}

func askFor(car carFile) asking {
	order := shuffled(len(car.cids))
	order = order[:min(len(order), 1<<20)]
	a := asking{n: len(order)}
	all := make([]byte, 0, a.n*mhLen)
	for _, i := range order {
		all = append(all, car.cids[i].Hash()...)
	}
	a.mhs = string(all)
	for i := range a.n {
		a.cids = append(a.cids, cid.NewCidV1(cid.Raw, multihash.Multihash(a.mh(i))))
	}
	return a
}

func (a *asking) mh(i int) string { return a.mhs[i*mhLen : (i+1)*mhLen] }

func shardIndexes(repo *index.FSIndexRepo, theirs string, car carFile, asked asking) []shardIndex {
	return []shardIndex{
		{"Go map, in memory", "map[string]{offset, size}, filled from a list in memory, whose making is what is given as open; the baseline", func() (func(int) (bool, error), func() error, error) {
			m := make(map[string]place, len(car.cids))
			for i, c := range car.cids {
				m[string(c.Hash())] = place{uint64(car.at[i]), smallBlock}
			}
			return func(n int) (bool, error) { _, ok := m[asked.mh(n)]; return ok, nil }, func() error { runtime.KeepAlive(m); return nil }, nil
		}},
		{"dagstore", "ShardIndex.Find: used in place on disk, mapped; a page is checked when it is first used; yields offset and size", func() (func(int) (bool, error), func() error, error) {
			x, err := repo.OpenIndex(theShard, 1)
			if err != nil {
				return nil, nil, err
			}
			return func(n int) (bool, error) { _, found, err := x.Find(asked.mh(n)); return found, err }, x.Close, nil
		}},
		{"go-car MultihashIndexSorted", "index.ReadFrom and GetFirst: read into memory as a whole, without checks; yields the offset", func() (func(int) (bool, error), func() error, error) {
			f, err := os.Open(theirs)
			if err != nil {
				return nil, nil, err
			}
			defer f.Close() // was only read
			x, err := carindex.ReadFrom(f)
			if err != nil {
				return nil, nil, err
			}
			find := func(n int) (bool, error) { _, err := carindex.GetFirst(x, asked.cids[n]); return err == nil, err }
			return find, func() error { runtime.KeepAlive(x); return nil }, nil
		}},
	}
}
