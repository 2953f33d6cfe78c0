package dagstore_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// Many shards are registered in one go, lazily, and initialised later, so many at a time.
func ExampleDAGStore_RegisterMany() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "dagstore")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cars := filepath.Join(dir, "cars")
	if err := os.Mkdir(cars, 0o700); err != nil {
		log.Fatal(err)
	}
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(cars, fmt.Sprintf("%d.car", i)), testdata.CarV1, 0o600); err != nil {
			log.Fatal(err)
		}
	}

	store, err := dagstore.Open(ctx, filepath.Join(dir, "store"),
		dagstore.WithGC(time.Hour),
		dagstore.WithRecovery(dagstore.RecoveryPolicy{MaxAttempts: 10}),
		dagstore.WithFailures(func(res dagstore.ShardResult) { log.Println(res.Key, res.Error) }))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	found := func(yield func(dagstore.Registration) bool) {
		entries, err := os.ReadDir(cars)
		if err != nil {
			log.Fatal(err)
		}
		for _, e := range entries {
			if !yield(dagstore.Registration{
				Key:   shard.KeyFromString(e.Name()),
				Mount: &mount.FileMount{Path: filepath.Join(cars, e.Name())},
				Opts:  dagstore.RegisterOpts{LazyInitialization: true},
			}) {
				return
			}
		}
	}
	report, err := store.RegisterMany(ctx, found, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Done, "registered,", report.Failed, "failed")

	report, err = store.InitializeAll(ctx, 2, func(p dagstore.Progress) {
		fmt.Println(p.Done, "of", p.Total)
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Done, "initialised,", report.Failed, "failed")
	// Output:
	// 3 registered, 0 failed
	// 1 of 3
	// 2 of 3
	// 3 of 3
	// 3 initialised, 0 failed
}
