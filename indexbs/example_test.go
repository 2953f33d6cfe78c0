package indexbs_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

func ExampleNew() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "indexbs-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := dagstore.Open(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	res, err := store.RegisterShardSync(ctx, shard.KeyFromString("one"), &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{})
	if err != nil {
		log.Fatal(err)
	}

	bs, err := indexbs.New(ctx, &indexbs.IdxBstoreDagstoreFromDagstore{Interface: store}, indexbs.Options{
		Policy:  indexbs.Prefer(indexbs.HealthyFirst, indexbs.LocalFirst, indexbs.OpenFirst),
		MaxOpen: 1000,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer bs.Close()
	blks, err := bs.GetMany(ctx, []cid.Cid{testdata.RootCID, missing})
	fmt.Println(len(blks[0].RawData()), blks[1])
	var none *dagstore.NoShardError
	fmt.Println(ipld.IsNotFound(err), errors.As(err, &none) && none.AsOf.Applied.Seq >= res.Seq)
	fmt.Println(bs.Stats().Opens, "opened")
	// Output:
	// 271 <nil>
	// true true
	// 1 opened
}

// A handler tells the three answers apart: the block, that there is none, and that it
// cannot be had now.
func ExampleOf() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "indexbs-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := dagstore.Open(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	key := shard.KeyFromString("one")
	if _, err := store.RegisterShardSync(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
		log.Fatal(err)
	}
	bs, err := indexbs.Of(store)
	if err != nil {
		log.Fatal(err)
	}
	defer bs.Close()

	answer := func(c cid.Cid) {
		var away *dagstore.UnavailableError
		blk, err := bs.Get(ctx, c)
		switch {
		case err == nil:
			fmt.Println(200, len(blk.RawData()))
		case ipld.IsNotFound(err):
			fmt.Println(404)
		case errors.As(err, &away):
			fmt.Println(503, "Retry-After:", away.RetryAfter)
		default:
			fmt.Println(500, err)
		}
	}
	answer(testdata.RootCID)
	answer(missing)
	// The blockstore lets go of its open accessor when the shard is destroyed.
	if _, err := store.DestroyShardSync(ctx, key, dagstore.DestroyOpts{}); err != nil {
		log.Fatal(err)
	}
	answer(testdata.RootCID)
	// Output:
	// 200 271
	// 404
	// 404
}

func ExampleNewIndexBackedBlockstore() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "indexbs-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := dagstore.Open(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	for name, car := range map[string][]byte{"one": testdata.CarV1, "two": testdata.CarShared} {
		if _, err := store.RegisterShardSync(ctx, shard.KeyFromString(name), &mount.BytesMount{Bytes: car}, dagstore.RegisterOpts{}); err != nil {
			log.Fatal(err)
		}
	}

	bs, err := indexbs.NewIndexBackedBlockstore(ctx,
		&indexbs.IdxBstoreDagstoreFromDagstore{Interface: store}, nil, 100, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	defer bs.(*indexbs.IndexBackedBlockstore).Close()
	one, err := bs.Get(ctx, testdata.RootCID)
	fmt.Println(len(one.RawData()), err)
	two, err := bs.GetSize(ctx, testdata.SharedRootCID)
	fmt.Println(two > 0, err)
	_, err = bs.Get(ctx, missing)
	fmt.Println(ipld.IsNotFound(err), errors.Is(err, indexbs.ErrBlockNotFound))
	// Output:
	// 271 <nil>
	// true <nil>
	// true true
}
