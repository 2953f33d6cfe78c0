package dagstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/shard"
)

// maxCandidates bounds how many shards of one block are explained.
const maxCandidates = 256

// CIDExplanation says which shards hold a block, which of them a read would best be
// served from, and why not from the others.
type CIDExplanation struct {
	CID string `json:"cid"`
	// Multihash is the CID's, in base58.
	Multihash string `json:"multihash"`
	// Seq is the catalogue's position: as of this event the answer is so, also when it
	// is that no shard holds the block.
	Seq uint64 `json:"seq"`
	// Chosen is the best shard; nil if none can serve.
	Chosen *shard.Key `json:"chosen"`
	// Shards are those that hold the block by the top-level index, available or not,
	// the best first. Of very many some are left out, and Total is how many there are.
	Shards []ShardChoice `json:"shards"`
	Total  int           `json:"total"`
	// AsOf is how fresh the top-level index is; Seq is AsOf.Applied.Seq.
	AsOf Freshness `json:"-"`
}

// ShardChoice is one shard of the answer.
type ShardChoice struct {
	Key    shard.Key `json:"key"`
	State  string    `json:"state"`
	Chosen bool      `json:"chosen"`
	// Reason says why it was chosen, or why not.
	Reason string `json:"reason"`
	// Open: its reader and index are open. Local: its bytes are in a local file or
	// read in place; no fetch is needed.
	Open  bool `json:"open"`
	Local bool `json:"local"`
}

// ExplainCID says which shards hold a block by the top-level index, which one a read
// would best be served from, and why the others are not it. A block that no shard
// holds is not an error: the answer has no shards, as of its sequence number.
func (d *DAGStore) ExplainCID(ctx context.Context, c cid.Cid) (CIDExplanation, error) {
	return d.ExplainCIDFor(ctx, c, Latest())
}

// ExplainCIDFor is ExplainCID of a top-level index that is as fresh as asked for: of one
// that is stalled, [Any] gets what it still shows.
func (d *DAGStore) ExplainCIDFor(ctx context.Context, c cid.Cid, fresh Consistency) (CIDExplanation, error) {
	if err := d.fresher(); err != nil {
		return CIDExplanation{}, err
	}
	if !c.Defined() {
		return CIDExplanation{}, fmt.Errorf("explain: %w", errUndefinedCID)
	}
	v, f, err := d.views.Read(ctx, TopLevelView, fresh)
	if err != nil {
		return CIDExplanation{}, fmt.Errorf("explain %s: %w", c, d.told(err))
	}
	f = d.overlay(f)
	x := CIDExplanation{CID: c.String(), Multihash: c.Hash().B58String(), Shards: []ShardChoice{}, Seq: f.Applied.Seq, AsOf: f}
	holders, err := v.(*topLevel).holders(ctx, c.Hash(), f.Applied.Seq)
	if err != nil {
		return CIDExplanation{}, err
	}
	x.Total = len(holders)
	cs := d.candidates(holders[:min(len(holders), maxCandidates)])
	var live bool
	if live = d.loop.control(func() { d.loop.lookAt(cs) }); !live {
		return CIDExplanation{}, ErrClosed
	}
	best, reasons := chooseShard(cs)
	for i, c := range cs {
		x.Shards = append(x.Shards, ShardChoice{
			Key: c.key, State: c.state, Chosen: i == best, Reason: reasons[i], Open: c.open, Local: c.local,
		})
	}
	if best >= 0 {
		x.Chosen = &cs[best].key
	}
	slices.SortStableFunc(x.Shards, func(a, b ShardChoice) int { return cmp.Compare(b.rank(), a.rank()) })
	return x, nil
}

var errUndefinedCID = errors.New("the CID is undefined")

func (s *ShardChoice) rank() (r int) {
	if s.Chosen {
		r += 2
	}
	if s.State == ShardStateAvailable.String() || s.State == ShardStateServing.String() {
		r++
	}
	return r
}

// candidate is what the choice of a shard depends on.
type candidate struct {
	key   shard.Key
	state string
	life  shard.Life // None: the index knows it and the catalogue does not
	open  bool
	local bool
	cause string // why it is errored or recovering, or why its last fetch failed
}

// candidates tells what is recorded of the shards, and whether their sources are read in
// place. What is volatile the loop adds.
func (d *DAGStore) candidates(holders []holder) []candidate {
	cs := make([]candidate, len(holders))
	for i, h := range holders {
		c, rec := &cs[i], h.rec
		c.key, c.state = h.key, ShardStateUnknown.String()
		if rec == nil {
			continue
		}
		c.life, c.cause = rec.Life(), rec.Reason()
		if c.life == shard.Available {
			mnt, direct, err := d.instantiate(rec.URL())
			d.closeMount(mnt)
			if c.local = direct; err != nil {
				c.life, c.cause = shard.Errored, err.Error()
			}
		}
		c.state = stateOf(c.life, 0).String()
	}
	return cs
}

// lookAt adds what the loop knows of live shards and of copies.
func (e *eventLoop) lookAt(cs []candidate) {
	for i := range cs {
		c := &cs[i]
		if lv := e.d.mu.hot[c.key]; lv != nil && !lv.busy && lv.s.Life != shard.None {
			s := &lv.s
			c.state, c.life, c.open = lv.info().String(), s.Life, s.Handle == fsm.Open
			c.local = s.Data == fsm.Direct || s.Data == fsm.Present
			if c.cause = ""; s.Cause != nil {
				c.cause = s.Cause.Error()
			}
		} else if rec := e.d.cat.Get(c.key); rec != nil {
			gen, copied := e.copies[c.key]
			c.local = c.local || copied && gen == rec.Gen()
		}
	}
}

// chooseShard chooses the shard to read a block from: one that is available and open,
// else one whose data is local, else one that must be fetched; of those alike the one
// with the lowest key. best is -1 if none is available. reasons says of each why it is
// the one, or why it is not.
func chooseShard(cs []candidate) (best int, reasons []string) {
	best, reasons = -1, make([]string, len(cs))
	for i := range cs {
		if cs[i].life != shard.Available {
			continue
		}
		if best < 0 || cmp.Or(cmp.Compare(cs[best].merit(), cs[i].merit()), cs[i].key.Compare(cs[best].key)) < 0 {
			best = i
		}
	}
	for i := range cs {
		reasons[i] = cs[i].reason(i == best, best >= 0 && cs[i].merit() == cs[best].merit())
	}
	return best, reasons
}

// merit is how little has to be done before the shard's blocks can be read.
func (c *candidate) merit() int {
	switch {
	case c.open:
		return 2
	case c.local:
		return 1
	}
	return 0
}

var merits = [...]string{"must be fetched first", "its data is local; it must be opened first", "it is open"}

func (c *candidate) reason(chosen, alike bool) string {
	switch c.life {
	case shard.None:
		return "it has no record any more; its entries are being removed"
	case shard.Registered, shard.Initialising:
		return "it is not indexed yet"
	case shard.Errored:
		return fmt.Sprintf("it is errored: %q", c.cause)
	case shard.Recovering:
		return fmt.Sprintf("it is being recovered: %q", c.cause)
	}
	text := merits[c.merit()]
	if c.cause != "" {
		text += fmt.Sprintf("; its last fetch failed: %q", c.cause)
	}
	switch {
	case chosen:
		return "chosen: " + text
	case alike:
		return "as good as the chosen one, whose key comes first: " + text
	}
	return "not the best: " + text
}

// String renders the explanation as a few lines.
func (x CIDExplanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "block %s (multihash %s), as of event %d: ", x.CID, x.Multihash, x.Seq)
	switch {
	case x.Total == 0:
		b.WriteString("no shard holds it\n")
	case x.Chosen == nil:
		fmt.Fprintf(&b, "held by %d, of which none is available\n", x.Total)
	default:
		fmt.Fprintf(&b, "held by %d, best read from %q\n", x.Total, *x.Chosen)
	}
	for _, s := range x.Shards {
		fmt.Fprintf(&b, "  %q (%s): %s\n", s.Key, s.State, s.Reason)
	}
	if more := x.Total - len(x.Shards); more > 0 {
		fmt.Fprintf(&b, "  and %d more\n", more)
	}
	return b.String()
}
