package dagstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/shard"
)

// ErrUnavailable is what every *[UnavailableError] is.
var ErrUnavailable = errors.New("cannot be served now")

// UnavailableError says that a shard, or a block that shards are known to hold, cannot be
// served now: the source cannot be had, the shard is errored or is being recovered. It is
// never a not-found error, whatever Reason is, and never stands for a block that is in no
// shard. Who serves others by HTTP answers 503 with RetryAfter.
type UnavailableError struct {
	// Multihash is the block's, or nil if a shard was asked for.
	Multihash mh.Multihash
	// Shards are those that hold the block and cannot serve, in the order of their keys;
	// of very many the first.
	Shards []shard.Key
	// Reason is why the first of them cannot.
	Reason error
	// Since is when it was found out first.
	Since time.Time
	// RetryAfter is in how long the store tries again, or lets a request try again. It is
	// 0 for what does not pass by itself: somebody has to recover the shard.
	RetryAfter time.Duration
}

func (e *UnavailableError) Error() string {
	var b strings.Builder
	if e.Multihash != nil {
		fmt.Fprintf(&b, "block %s of ", multihashName(e.Multihash))
	}
	switch len(e.Shards) {
	case 0:
		b.WriteString("a shard")
	case 1:
		fmt.Fprintf(&b, "shard %q", e.Shards[0])
	default:
		fmt.Fprintf(&b, "%d shards, among them %q,", len(e.Shards), e.Shards[0])
	}
	fmt.Fprintf(&b, " %v", ErrUnavailable)
	if !e.Since.IsZero() {
		fmt.Fprintf(&b, ", since %s", e.Since.UTC().Format(time.RFC3339))
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, ", next try in %s", e.RetryAfter.Round(time.Millisecond))
	}
	if of, ok := e.Reason.(*BlockError); ok && len(e.Shards) == 1 && of.Shard == e.Shards[0] { // which is named already
		fmt.Fprintf(&b, ": at offset %d: %v", of.Offset, of.Err)
	} else if e.Reason != nil {
		fmt.Fprintf(&b, ": %v", e.Reason)
	}
	return b.String()
}

// Unwrap returns ErrUnavailable and the reason. A reason that is a not-found error of
// somebody's blockstore or datastore is told as text only.
func (e *UnavailableError) Unwrap() []error {
	if e.Reason == nil {
		return []error{ErrUnavailable}
	}
	return []error{ErrUnavailable, veiled(e.Reason)}
}

// veiled hides what would make a reason a not-found error.
func veiled(err error) error {
	if ipld.IsNotFound(err) || errors.Is(err, ds.ErrNotFound) {
		return errors.New(err.Error())
	}
	return err
}

// multihashName spells a multihash out, if it is not too long for that.
func multihashName(h mh.Multihash) string {
	if n := len(h); n > maxNamed { // base 58 takes the square of the length
		return fmt.Sprintf("%x… (%d bytes)", []byte(h[:maxNamed]), n)
	}
	return h.B58String()
}

// HeldBy is what a lookup found out about a block.
type HeldBy struct {
	// Serving are the shards that hold the block and can be acquired, in the order of
	// their keys.
	Serving []shard.Key
	// Away are those that hold it, or held it when they were indexed, and cannot serve now.
	Away []UnavailableShard
	// NeverIndexed is how many shards were never indexed, being lazy or having failed at
	// their first try: nobody knows what they hold.
	NeverIndexed int
	// AsOf is how fresh the answer is.
	AsOf Freshness
}

// UnavailableShard is a shard that cannot serve, and why.
type UnavailableShard struct {
	Key        shard.Key
	State      ShardState
	Reason     error
	Since      time.Time
	RetryAfter time.Duration // 0: it does not pass by itself
}

// unavailable makes one error of shards that hold a block.
func unavailable(h mh.Multihash, away []UnavailableShard) *UnavailableError {
	const most = 16
	e := &UnavailableError{Multihash: slices.Clone(h)}
	for i := range away {
		u := &away[i]
		if len(e.Shards) < most {
			e.Shards = append(e.Shards, u.Key)
		}
		if i == 0 {
			e.Reason, e.Since, e.RetryAfter = u.Reason, u.Since, u.RetryAfter
		}
		if u.RetryAfter > 0 && (e.RetryAfter == 0 || u.RetryAfter < e.RetryAfter) {
			e.RetryAfter = u.RetryAfter
		}
	}
	return e
}
