package dagstore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// Another process follows the store and reads what this one has written: the result's
// position, as a token, says how fresh the answer has to be.
func ExampleOpenFollower() {
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
	defer store.Close()
	res, err := store.RegisterShardSync(ctx, shard.KeyFromString("sample"), &mount.FileMount{Path: testdata.RootPathCarV1}, dagstore.RegisterOpts{})
	if err != nil {
		log.Fatal(err)
	}
	token := res.Position.Token() // goes to the other process, in a header or a cookie

	follower, err := dagstore.OpenFollower(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	defer follower.Close()
	at, err := dagstore.ParsePosition(token)
	if err != nil {
		log.Fatal(err)
	}
	keys, fresh, err := follower.FindShards(ctx, testdata.RootCID.Hash(), dagstore.AtLeast(at).Wait(time.Second))
	fmt.Println(keys, fresh.Applied.Seq >= res.Seq, err)

	err = follower.DestroyShard(ctx, keys[0], nil, dagstore.DestroyOpts{})
	fmt.Println(errors.Is(err, dagstore.ErrReadOnly))
	// Output:
	// [sample] true <nil>
	// true
}

// The catalogue as it was, and what has happened to a shard since.
func ExampleDAGStore_History() {
	ctx := context.Background()
	store, done := openExample(ctx)
	defer done()
	key := shard.KeyFromString("sample")
	res, err := store.RegisterShardSync(ctx, key, &mount.FileMount{Path: testdata.RootPathCarV1}, dagstore.RegisterOpts{})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := store.DestroyShardSync(ctx, key, dagstore.DestroyOpts{}); err != nil {
		log.Fatal(err)
	}
	before, err := store.CatalogueAt(ctx, res.Seq)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("then:", before.Len(), "shard, available:", before.Get(key) != nil)
	h, err := store.History(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range h.Lives {
		for _, e := range l.Events {
			fmt.Println(e.Seq, e.Kind)
		}
	}
	// Output:
	// then: 1 shard, available: true
	// 1 registered
	// 2 indexed
	// 3 destroyed
}

// A view of one's own is fed with every batch, also with those from before it was
// registered. Package projection shows one that is checkpointed and published.
func ExampleWithView() {
	ctx := context.Background()
	counts := newCountView("indexed")
	store, done := openExample(ctx, dagstore.WithView(counts))
	defer done()
	if _, err := store.RegisterShardSync(ctx, shard.KeyFromString("sample"), &mount.FileMount{Path: testdata.RootPathCarV1}, dagstore.RegisterOpts{}); err != nil {
		log.Fatal(err)
	}
	view, fresh, err := store.ReadView(ctx, "indexed", dagstore.Latest())
	fmt.Println(view.(*countView).indexed.Load(), fresh.Lag, err)
	// Output: 1 0 <nil>
}
