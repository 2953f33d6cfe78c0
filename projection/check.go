package projection

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// maxDifferences bounds the differences that a [CheckReport] lists.
const maxDifferences = 100

// CheckReport says whether what is shown, and what is in the checkpoints, is what the
// journal comes to.
type CheckReport struct {
	// Position is where the catalogue was compared. Live and Replayed are the digests
	// of what it shows there and of the replay.
	Position       journal.Position
	Live, Replayed [32]byte
	// Shards is how many the replay found.
	Shards int
	// Differences are the first 100; Omitted is how many more there are.
	Differences []Difference
	Omitted     int
	Checkpoints []CheckedCheckpoint
	Took        time.Duration
}

// Difference is a key whose record is not what the journal says.
type Difference struct {
	Key shard.Key
	// Live and Replayed are the records; nil where there is none.
	Live, Replayed *Record
}

// String is for people.
func (d Difference) String() string {
	return fmt.Sprintf("shard %q is shown as %s; the journal says %s", d.Key, describe(d.Live), describe(d.Replayed))
}

func describe(r *Record) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%s by event %d of generation %d, %+v", r.Life(), r.Seq(), r.Gen(), r.State())
}

// CheckedCheckpoint is a checkpoint on disk. Err says what is wrong with it, or is
// nil. Of views other than the catalogue the bytes and the position are checked, and
// not what they come to; of one below the horizon, which a removal that failed or a crash
// left behind and nobody will use, the bytes only.
type CheckedCheckpoint struct {
	File     string
	View     string
	Position journal.Position
	Err      error
}

// OK reports whether everything is as it should be.
func (c *CheckReport) OK() bool {
	return len(c.Differences) == 0 && c.Live == c.Replayed &&
		!slices.ContainsFunc(c.Checkpoints, func(k CheckedCheckpoint) bool { return k.Err != nil })
}

// Check replays the journal beside everything else, from its base or its beginning and
// without checkpoints, and compares: the live catalogue by digest and, where that
// differs, key by key; each checkpoint of the catalogue with the replay at its
// position; the bytes of all checkpoints with their checksums. The error is the
// journal's or the context's; what is found is in the report.
func (r *Runner) Check(ctx context.Context) (CheckReport, error) {
	var rep CheckReport
	ctx, leave, err := r.join(ctx)
	if err != nil {
		return rep, err
	}
	defer leave()
	done, err := r.readHistory(ctx)
	if err != nil {
		return rep, err
	}
	defer done()
	began := r.now()
	live := r.cat.Snapshot()
	rep.Position = live.Position()
	r.checkFiles(ctx, &rep)
	replayed := NewCatalogue()
	for i := range rep.Checkpoints {
		k := &rep.Checkpoints[i]
		below := k.Position.Seq < horizonOf(r.j).Seq && !planted.Bug("check-blames-old-checkpoints")
		if k.View != catalogueName || k.Err != nil || k.Position.Seq > rep.Position.Seq || below {
			continue
		}
		if err := r.checkCheckpoint(ctx, k, replayed); err != nil {
			return rep, cause(ctx, err)
		}
	}
	if _, err := replayed.Load(ctx, prefix{r.j, rep.Position.Seq}); err != nil {
		return rep, cause(ctx, err)
	}
	want := replayed.Snapshot()
	if want.Position() != rep.Position {
		return rep, fmt.Errorf("the catalogue shows %v, a replay ends at %v", rep.Position, want.Position())
	}
	rep.Shards, rep.Live, rep.Replayed = want.Len(), live.Digest(), want.Digest()
	if rep.Live != rep.Replayed {
		rep.compare(live, want)
	}
	rep.Took = r.now().Sub(began)
	return rep, nil
}

// checkFiles verifies the bytes of all checkpoints on disk and lists them in the order
// of their positions.
func (r *Runner) checkFiles(ctx context.Context, rep *CheckReport) {
	if r.opts.Dir == "" {
		return
	}
	for _, v := range r.views() {
		files, err := r.files.list(v.name)
		if err != nil {
			rep.Checkpoints = append(rep.Checkpoints, CheckedCheckpoint{File: r.opts.Dir, View: v.name, Err: err})
		}
		for _, f := range files {
			if ctx.Err() != nil {
				return // the replay will say so
			}
			k := CheckedCheckpoint{File: f.name, View: v.name}
			k.Position, k.Err = r.checkFile(f.name, v)
			if errors.Is(k.Err, fs.ErrNotExist) {
				continue // a newer one has taken its place meanwhile
			}
			rep.Checkpoints = append(rep.Checkpoints, k)
		}
	}
	slices.SortStableFunc(rep.Checkpoints, func(a, b CheckedCheckpoint) int { return cmp.Compare(a.Position.Seq, b.Position.Seq) })
}

func (r *Runner) checkFile(file string, v *view) (journal.Position, error) {
	c, f, err := r.files.open(file)
	if err != nil {
		return journal.Position{}, err
	}
	defer func() { _ = f.Close() }()
	err = r.suits(&c.id, v)
	if errors.Is(err, journal.ErrCompacted) && !planted.Bug("check-blames-old-checkpoints") {
		err = nil // what it was made of is gone
	}
	if err != nil {
		return c.id.pos, err
	}
	_, err = c.finish()
	return c.id.pos, err
}

// checkCheckpoint compares a checkpoint with replayed, which it brings to its
// position.
func (r *Runner) checkCheckpoint(ctx context.Context, k *CheckedCheckpoint, replayed *Catalogue) error {
	if _, err := replayed.Load(ctx, prefix{r.j, k.Position.Seq}); err != nil {
		return err
	}
	cat := NewCatalogue()
	_, k.Err = r.restore(ctx, k.File, r.first, cat)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(k.Err, fs.ErrNotExist) {
		k.Err = nil // a newer one has taken its place meanwhile
		return nil
	}
	if k.Err == nil && cat.Snapshot().Digest() != replayed.Snapshot().Digest() {
		k.Err = fmt.Errorf("what it holds is not what the journal comes to at %v", k.Position)
	}
	return nil
}

// compare lists how live differs from want.
func (c *CheckReport) compare(live, want *Snapshot) {
	rest := map[shard.Key]*Record{}
	want.All(func(r *Record) bool {
		rest[r.Key()] = r
		return true
	})
	live.All(func(r *Record) bool {
		w := rest[r.Key()]
		delete(rest, r.Key())
		if w == nil || w.Seq() != r.Seq() || w.Gen() != r.Gen() || w.Time() != r.Time() || w.State() != r.State() {
			c.differ(Difference{Key: r.Key(), Live: r, Replayed: w})
		}
		return true
	})
	for key, w := range rest {
		c.differ(Difference{Key: key, Replayed: w})
	}
	slices.SortFunc(c.Differences, func(a, b Difference) int { return a.Key.Compare(b.Key) })
}

func (c *CheckReport) differ(d Difference) {
	if len(c.Differences) == maxDifferences {
		c.Omitted++
		return
	}
	c.Differences = append(c.Differences, d)
}
