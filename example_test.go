package dagstore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// openExample opens a store in a directory that is removed by close.
func openExample(ctx context.Context, opts ...dagstore.Option) (store *dagstore.DAGStore, close func()) {
	dir, err := os.MkdirTemp("", "dagstore-example-")
	if err != nil {
		log.Fatal(err)
	}
	if store, err = dagstore.Open(ctx, dir, opts...); err != nil {
		log.Fatal(err)
	}
	return store, func() {
		if err := errors.Join(store.Close(), os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

// A store in a directory, a shard from a file, a block, and all of it again after
// reopening.
func ExampleOpen() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "dagstore-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	store, err := dagstore.Open(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	key := shard.KeyFromString("sample")
	if _, err := store.RegisterShardSync(ctx, key, &mount.FileMount{Path: testdata.RootPathCarV1}, dagstore.RegisterOpts{}); err != nil {
		log.Fatal(err)
	}
	if err := store.Close(); err != nil {
		log.Fatal(err)
	}

	if store, err = dagstore.Open(ctx, dir); err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	acc, err := store.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
	if err != nil {
		log.Fatal(err)
	}
	defer acc.Close()
	bs, err := acc.Blockstore()
	if err != nil {
		log.Fatal(err)
	}
	blk, err := bs.Get(ctx, testdata.RootCID)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(blk.Cid(), len(blk.RawData()), "bytes")
	// Output: bafybeicvdg7m7rykarcfk6zor33wk2iknk3zxi4mvbjx7vme34dra2tdvm 271 bytes
}

// What a mount needs besides its URL, here the file system, is given to the store by
// a template, each time the store is opened.
func ExampleWithMount() {
	ctx := context.Background()
	store, done := openExample(ctx, dagstore.WithMount("embedded", &mount.FSMount{FS: testdata.FS}))
	defer done()

	mnt := &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV2}
	res, err := store.RegisterShardSync(ctx, shard.KeyFromString("sample"), mnt, dagstore.RegisterOpts{})
	fmt.Println(res.Key, err)
	// Output: sample <nil>
}

// Results come on the caller's channel; an acquire may be queued at once.
func ExampleDAGStore_RegisterShard() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()

	key := shard.KeyFromString("sample")
	registered, acquired := make(chan dagstore.ShardResult, 1), make(chan dagstore.ShardResult, 1)
	if err := store.RegisterShard(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, registered, dagstore.RegisterOpts{}); err != nil {
		log.Fatal(err) // refused at once; nothing will come on the channel
	}
	if err := store.AcquireShard(ctx, key, acquired, dagstore.AcquireOpts{}); err != nil {
		log.Fatal(err)
	}
	res := <-registered
	fmt.Println("registered:", res.Key, res.Error)
	res = <-acquired
	if res.Error != nil {
		log.Fatal(res.Error)
	}
	defer res.Accessor.Close()
	info, err := store.GetShardInfo(key)
	fmt.Println(info.ShardState, err)
	// Output:
	// registered: sample <nil>
	// ShardStateServing <nil>
}

// While an accessor is open its shard cannot be destroyed.
func ExampleDAGStore_AcquireShardSync() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()

	key := shard.KeyFromString("sample")
	if _, err := store.RegisterShardSync(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
		log.Fatal(err)
	}
	acc, err := store.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
	if err != nil {
		log.Fatal(err)
	}
	_, err = store.DestroyShardSync(ctx, key, dagstore.DestroyOpts{})
	fmt.Println("in use:", errors.Is(err, dagstore.ErrShardInUse))
	acc.Close()
	_, err = store.DestroyShardSync(ctx, key, dagstore.DestroyOpts{})
	fmt.Println("destroyed:", err == nil)
	// Output:
	// in use: true
	// destroyed: true
}

// View lends the bytes of a block instead of copying them.
func ExampleShardAccessor_View() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()

	key := shard.KeyFromString("sample")
	if _, err := store.RegisterShardSync(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
		log.Fatal(err)
	}
	acc, err := store.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
	if err != nil {
		log.Fatal(err)
	}
	defer acc.Close()
	size := 0
	err = acc.View(ctx, testdata.RootCID, func(block []byte) error {
		size = len(block) // block is good until this function returns
		return nil
	})
	fmt.Println(size, err)
	// Output: 271 <nil>
}

// A block is found by its multihash, in whichever shards hold it.
func ExampleDAGStore_ShardsContainingMultihash() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()

	for name, car := range map[string][]byte{"one": testdata.CarV1, "two": testdata.CarShared} {
		if _, err := store.RegisterShardSync(ctx, shard.KeyFromString(name), &mount.BytesMount{Bytes: car}, dagstore.RegisterOpts{}); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(store.ShardsContainingMultihash(ctx, testdata.SharedRootCID.Hash()))
	// Output: [two] <nil>
}

// Explain says what keeps a shard from being served, and what would change it.
func ExampleDAGStore_Explain() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()

	key := shard.KeyFromString("gone")
	_, err := store.RegisterShardSync(ctx, key, &mount.FileMount{Path: "no/such.car"}, dagstore.RegisterOpts{})
	fmt.Println("failed:", errors.Is(err, dagstore.ErrShardInitializationFailed))
	why, err := store.Explain(key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(why.State, "ready:", why.Machine.Ready)
	for _, next := range why.Machine.Missing {
		fmt.Println("next:", next.Transition)
	}
	// Output:
	// failed: true
	// ShardStateNew ready: false
	// next: initialise
}

// A long list comes in pages.
func ExampleDAGStore_ListShards() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()

	for i := range 5 {
		key := shard.KeyFromString(fmt.Sprint("sample-", i))
		opts := dagstore.RegisterOpts{LazyInitialization: i > 0}
		if _, err := store.RegisterShardSync(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, opts); err != nil {
			log.Fatal(err)
		}
	}
	opts := dagstore.ListOptions{States: []dagstore.ShardState{dagstore.ShardStateNew}, Limit: 3}
	total := 0
	for {
		page, err := store.ListShards(opts)
		if err != nil {
			log.Fatal(err)
		}
		for _, s := range page.Shards {
			if strings.HasPrefix(s.Key.String(), "sample-") && s.Lazy {
				total++
			}
		}
		if page.Next == "" {
			break
		}
		opts.Cursor = page.Next
	}
	fmt.Println(total, "shards wait to be asked for")
	// Output: 4 shards wait to be asked for
}
