package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// noRetries makes a mount give up at once, so that the example need not wait for a
// server that is down. The default is to try again for some seconds.
var noRetries = &mount.HTTPOptions{Retries: -1}

// register registers the shards: some are fetched and indexed at once, some when
// they are first asked for.
func (t *tour) register(ctx context.Context) (err error) {
	path := filepath.Join(t.dir, "cars", "sample-v1.car")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, testdata.CarV1, 0o600); err != nil {
		return err
	}
	if t.origin, err = serve(testdata.CarShared); err != nil {
		return err
	}
	if t.down, err = serve(testdata.CarV1); err != nil {
		return err
	}

	lazily := dagstore.RegisterOpts{LazyInitialization: true}
	results := make(chan dagstore.ShardResult) // unread results delay nobody
	waiting := 0
	add := func(key shard.Key, mnt mount.Mount, opts dagstore.RegisterOpts) error {
		err := t.store.RegisterShard(ctx, key, mnt, results, opts)
		if err == nil {
			waiting++
		}
		return err
	}
	if err := errors.Join(
		add(fromFile, &mount.FileMount{Path: path}, dagstore.RegisterOpts{}),
		add(fromFS, &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV2}, lazily),
		add(fromHTTP, &mount.HTTPMount{URL: t.origin.url, Options: noRetries}, dagstore.RegisterOpts{}),
		add(offline, &mount.HTTPMount{URL: t.down.url, Options: noRetries}, lazily),
	); err != nil {
		return err
	}
	for _, key := range t.mine {
		if err := add(key, &mount.FileMount{Path: key.String()}, dagstore.RegisterOpts{}); err != nil {
			return err
		}
	}

	// A shard is listed as soon as it is recorded, which GetShardInfo waits for. The
	// one over HTTP is kept waiting by its origin until the list is printed.
	for _, key := range append([]shard.Key{fromFile, fromFS, fromHTTP, offline}, t.mine...) {
		if _, err := t.store.GetShardInfo(key); err != nil {
			return err
		}
	}
	if err := t.table("a moment later"); err != nil {
		return err
	}
	t.origin.answer()
	for ; waiting > 0; waiting-- {
		select {
		case res := <-results:
			if res.Error != nil {
				return res.Error // which names the shard
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return t.table("when all were answered; the lazy ones wait to be asked for")
}

// lookUp finds a block that two shards hold.
func (t *tour) lookUp(ctx context.Context) error {
	c, err := t.sharedBlock(ctx)
	if err != nil {
		return err
	}
	return t.where(ctx, c, fromFile, fromHTTP)
}

// where says which shards hold a block, and insists on some.
func (t *tour) where(ctx context.Context, c cid.Cid, want ...shard.Key) error {
	start := time.Now()
	keys, err := t.store.ShardsContainingMultihash(ctx, c.Hash())
	if err != nil {
		return err
	}
	took := time.Since(start)
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = name(k)
	}
	slices.Sort(names)
	t.out.line("   %s\n   is in %s (%s)", c, strings.Join(names, ", "), rounded(took))
	for _, k := range want {
		if !slices.Contains(keys, k) {
			return fmt.Errorf("block %s should be in shard %q, but is in %v only", c, k, names)
		}
	}
	return nil
}

// sharedBlock picks a block of fromHTTP that fromFile holds too.
func (t *tour) sharedBlock(ctx context.Context) (cid.Cid, error) {
	it, err := t.store.GetIterableIndex(fromHTTP)
	if err != nil {
		return cid.Undef, err
	}
	found := errors.New("found")
	var c cid.Cid
	err = it.ForEach(func(m mh.Multihash, _ uint64) error {
		keys, err := t.store.ShardsContainingMultihash(ctx, m)
		if err == nil && slices.Contains(keys, fromFile) {
			c, err = cid.NewCidV1(cid.Raw, slices.Clone(m)), found
		}
		return err
	})
	switch {
	case errors.Is(err, found):
		return c, nil
	case err == nil:
		err = errors.New("the sample shards have no block in common")
	}
	return cid.Undef, err
}

// readAll acquires all shards but the one whose origin will be down, and reads them.
func (t *tour) readAll(ctx context.Context) error {
	var open []*dagstore.ShardAccessor
	defer func() {
		for _, acc := range open {
			acc.Close()
		}
	}()
	for _, key := range append([]shard.Key{fromFile, fromFS, fromHTTP}, t.mine...) {
		acc, err := t.store.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
		if err != nil {
			return err
		}
		open = append(open, acc)
	}
	if err := t.table("while they are acquired"); err != nil {
		return err
	}
	rows := [][]any{{"SHARD", "BLOCKS", "BYTES", "TIME", "MB/S"}}
	for _, acc := range open {
		start := time.Now()
		blocks, size, err := t.verify(ctx, acc)
		if err != nil {
			return err
		}
		took := time.Since(start)
		rows = append(rows, []any{name(acc.Shard()), blocks, size, rounded(took), fmt.Sprintf("%.0f", float64(size)/1e6/took.Seconds())})
	}
	t.out.line("   read, and hashed once by the store and once more here:")
	t.out.table(rows)
	c, err := t.sharedBlock(ctx)
	if err != nil {
		return err
	}
	t.out.line("   and now that the lazy shard is indexed too,")
	return t.where(ctx, c, fromFile, fromFS, fromHTTP)
}

// verify reads every block of a shard and hashes it.
func (t *tour) verify(ctx context.Context, acc *dagstore.ShardAccessor) (blocks int, size int64, err error) {
	it, err := t.store.GetIterableIndex(acc.Shard())
	if err != nil {
		return 0, 0, err
	}
	err = it.ForEach(func(m mh.Multihash, _ uint64) error {
		c := cid.NewCidV1(cid.Raw, m)
		return acc.View(ctx, c, func(data []byte) error {
			got, err := c.Prefix().Sum(data)
			if err == nil && !bytes.Equal(got.Hash(), m) {
				err = fmt.Errorf("shard %q served bytes for block %s that hash to %s", acc.Shard(), c, got)
			}
			blocks++
			size += int64(len(data))
			return err
		})
	})
	if err == nil && blocks == 0 {
		err = fmt.Errorf("shard %q holds no blocks", acc.Shard())
	}
	return blocks, size, err
}

// askOffline stops an origin and asks for its shard.
func (t *tour) askOffline(ctx context.Context) error {
	if err := t.down.stop(); err != nil {
		return err
	}
	acc, err := t.store.AcquireShardSync(ctx, offline, dagstore.AcquireOpts{})
	if err == nil {
		acc.Close()
		return fmt.Errorf("shard %q was acquired although its origin is down", offline)
	}
	if !errors.Is(err, dagstore.ErrShardInitializationFailed) {
		return err
	}
	t.out.line("   acquire says: %v", err)
	why, err := t.store.Explain(offline)
	if err != nil {
		return err
	}
	t.out.line("   Explain says:")
	t.out.indented(why.String())
	return t.table("the others are not concerned")
}

// reopen closes the store, stops the last origin, and opens the store again.
func (t *tour) reopen(ctx context.Context) error {
	before, err := t.store.ListShards(dagstore.ListOptions{})
	if err != nil {
		return err
	}
	c, err := t.sharedBlock(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	err = t.store.Close()
	t.store = nil
	if err := errors.Join(err, t.origin.stop()); err != nil {
		return err
	}
	t.out.line("   closed in %s", rounded(time.Since(start)))

	start = time.Now()
	if t.store, err = dagstore.Open(ctx, filepath.Join(t.dir, "store"),
		dagstore.WithMount("fs", &mount.FSMount{FS: testdata.FS}), dagstore.WithLogger(quiet())); err != nil {
		return err
	}
	t.out.line("   reopened in %s", rounded(time.Since(start)))
	if err := t.table("after reopening"); err != nil {
		return err
	}
	after, err := t.store.ListShards(dagstore.ListOptions{})
	if err != nil {
		return err
	}
	// That an origin is down is not recorded: it passes.
	if !slices.EqualFunc(before.Shards, after.Shards, func(a, b dagstore.ShardSummary) bool {
		return a.Key == b.Key && a.State == b.State && a.URL == b.URL && a.Blocks == b.Blocks && a.SourceSize == b.SourceSize && a.Seq == b.Seq
	}) {
		return fmt.Errorf("the shards are not what they were: before %+v, after %+v", before.Shards, after.Shards)
	}
	if err := t.where(ctx, c, fromFile, fromFS, fromHTTP); err != nil {
		return err
	}
	for _, key := range []shard.Key{fromFile, fromFS, fromHTTP} {
		if err := t.readOne(ctx, key, c); err != nil {
			return err
		}
	}
	return nil
}

// readOne reads one block from one shard.
func (t *tour) readOne(ctx context.Context, key shard.Key, c cid.Cid) error {
	start := time.Now()
	acc, err := t.store.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
	if err != nil {
		return err
	}
	defer acc.Close()
	bs, err := acc.Blockstore()
	if err != nil {
		return err
	}
	blk, err := bs.Get(ctx, c)
	if err != nil {
		return err
	}
	t.out.line("   %d bytes of it from %s in %s", len(blk.RawData()), name(key), rounded(time.Since(start)))
	return nil
}
