//go:build unix

package indexbs_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

const fewDescriptorsEnv = "DAGSTORE_TEST_FEW_DESCRIPTORS"

// TestFewDescriptors: a process that may have 64 descriptors registers 500 files at once,
// read in place or copied, and every read through the blockstore succeeds, from 32
// goroutines, half of them with batches over 20 shards. Proves A5.
func TestFewDescriptors(t *testing.T) {
	if dir := os.Getenv(fewDescriptorsEnv); dir != "" {
		if err := withFewDescriptors(t, dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	for i := range fewShards {
		if _, err := writeCAR(fewPath(dir, i), uint64(fewBlocks*i+1), fewBlocks, 512); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{"read in place", "copied"} {
		t.Run(kind, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestFewDescriptors$", "-test.timeout=3m")
			cmd.Env = append(os.Environ(), fewDescriptorsEnv+"="+dir, fewDescriptorsEnv+"_STORE="+t.TempDir(), fewDescriptorsEnv+"_KIND="+kind)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

const fewShards, fewBlocks = 500, 3

func fewPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("%d.car", i)) }

func withFewDescriptors(t *testing.T, dir string) error {
	limit := syscall.Rlimit{Cur: 64, Max: 64}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	d, err := dagstore.Open(ctx, os.Getenv(fewDescriptorsEnv+"_STORE"), dagstore.WithLogger(slog.New(slog.DiscardHandler)),
		dagstore.WithMount("fs", &mount.FSMount{FS: os.DirFS(dir)}))
	if err != nil {
		return err
	}
	defer d.Close()
	out := make(chan dagstore.ShardResult, fewShards)
	for i := range fewShards {
		m := mount.Mount(&mount.FileMount{Path: fewPath(dir, i)})
		if os.Getenv(fewDescriptorsEnv+"_KIND") == "copied" {
			m = &mount.FSMount{FS: os.DirFS(dir), Path: fmt.Sprintf("%d.car", i)}
		}
		if err := d.RegisterShard(ctx, shard.KeyFromString(fmt.Sprint(i)), m, out, dagstore.RegisterOpts{}); err != nil {
			return err
		}
	}
	for range fewShards {
		if res := <-out; res.Error != nil {
			return fmt.Errorf("register: %w", res.Error)
		}
	}
	bs, err := indexbs.Of(d)
	if err != nil {
		return err
	}
	defer bs.Close()
	var g errgroup.Group
	for w := range 32 {
		g.Go(func() error {
			for i := range fewShards {
				n := (i*(2*w+1) + 61*w) % fewShards
				var cids []cid.Cid
				for b := range fewBlocks {
					cids = append(cids, cidOf(blockOf(uint64(fewBlocks*n+b+1), 512)))
				}
				if w%2 == 0 {
					for k := range 20 { // of many shards, which are opened ahead
						cids = append(cids, cidOf(blockOf(uint64(fewBlocks*((n+7*k)%fewShards)+1), 512)))
					}
					if i%10 != 0 {
						continue
					}
					if _, err := bs.GetMany(ctx, cids); err != nil {
						return err
					}
					continue
				}
				for _, c := range cids {
					if _, err := bs.Get(ctx, c); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}
