// Command bench measures dagstore beside what else one could use, in one run, on inputs
// that follow from seeds, and writes the figures as docs/BENCH.md and docs/bench.svg:
//
//	go run . -out ../docs
//
// It is a module of its own, so that an importer of dagstore pays for none of the others.
// Subjects are measured in turn, round after round, so that a machine that slows down
// does so for all; the figures are medians of the rounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// config is what a run measures.
type config struct {
	entries int           // of the top-level index
	perAdd  int           // of them, those of one shard
	records int           // of the shard index
	blocks  int           // of 1 KiB in the CAR
	rounds  int           // of which the medians are taken
	each    time.Duration // that a rate is measured for, in a round
	rest    time.Duration // that a folder must not change before it is taken to be at rest
	patient time.Duration // after which a slow insert is not repeated
	dir     string        // for temporary files
	out     string        // folder of the page and the chart; "" prints the page
	command string
}

func main() {
	cfg := config{rounds: 5, each: time.Second, rest: 3 * time.Second, patient: time.Minute}
	flag.IntVar(&cfg.entries, "entries", 10_000_000, "entries of the top-level index")
	flag.IntVar(&cfg.perAdd, "shard", 100_000, "blocks of a shard in the top-level index")
	flag.IntVar(&cfg.records, "records", 2_500_000, "blocks of the shard index")
	flag.IntVar(&cfg.blocks, "blocks", 262_144, "blocks of 1 KiB in the CAR that is read")
	flag.IntVar(&cfg.rounds, "rounds", cfg.rounds, "rounds of which the medians are taken")
	flag.DurationVar(&cfg.each, "each", cfg.each, "how long a rate is measured for in a round")
	flag.StringVar(&cfg.dir, "dir", "", "folder for temporary files, on the disk that is to be measured")
	flag.StringVar(&cfg.out, "out", "", "folder that BENCH.md and bench.svg are written to; empty: print the page")
	quick := flag.Bool("quick", false, "small inputs and short rounds, to see whether everything runs")
	flag.Parse()
	if *quick {
		cfg.entries, cfg.records, cfg.blocks, cfg.rounds, cfg.each = 200_000, 50_000, 8192, 2, 100*time.Millisecond
	}
	cfg.command = strings.Join(append([]string{"go run ."}, os.Args[1:]...), " ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, cfg, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures everything and writes the page and the chart.
func run(ctx context.Context, cfg config, out, progress io.Writer) (err error) {
	dir, err := os.MkdirTemp(cfg.dir, "dagstore-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := report{about: describe(cfg, dir)}
	before := spent()
	for _, part := range []struct {
		name    string
		measure func(context.Context, config, string, io.Writer) ([]table, error)
	}{
		{"top-level index", measureTopLevel},
		{"shard index", measureShardIndex},
		{"block reads", measureReads},
		{"whole shard", measureWhole},
	} {
		fmt.Fprintf(progress, "%s\n", part.name)
		sub := filepath.Join(dir, strings.ReplaceAll(part.name, " ", "-"))
		if err := os.Mkdir(sub, 0o700); err != nil {
			return err
		}
		tables, err := part.measure(ctx, cfg, sub, progress)
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		r.tables = append(r.tables, tables...)
		if err := os.RemoveAll(sub); err != nil {
			return err
		}
	}
	r.about.loadAfter, r.about.others = load(), othersShare(before, spent())
	if cfg.out == "" {
		return r.writePage(out)
	}
	return r.writeFiles(cfg.out)
}
