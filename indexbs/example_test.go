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
