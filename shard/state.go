package shard

// Life is how far a shard has come. It is the durable part of a shard's state;
// the public ShardState of the store is derived from it and from what is open.
type Life uint8

const (
	// None: no such shard, or destroyed.
	None Life = iota
	// Registered: known, not yet indexed. Wire name "registered".
	Registered
	// Initialising: being fetched or indexed for the first time. Never durable:
	// a journal holds Registered until the index is.
	Initialising
	// Available: a durable, valid index of this generation exists.
	Available
	// Errored: initialisation or recovery failed, or the source no longer matches
	// its index. Left only by recovery or destruction.
	Errored
	// Recovering: being fetched and indexed afresh after a failure.
	Recovering

	numLives
)

var lifeNames = [numLives]string{"none", "registered", "initialising", "available", "errored", "recovering"}

// String returns the life's name in lower case.
func (l Life) String() string {
	if l < numLives {
		return lifeNames[l]
	}
	return "invalid"
}

// State is everything durable about one life of a shard.
type State struct {
	Life Life
	// Lazy: registered with lazy initialisation; nothing happens before the first
	// acquire.
	Lazy bool
	// URL describes the mount; the mount registry revives it. It carries no secret.
	URL string
	// Transient is the path of a complete local copy that the caller owned and
	// offered at registration, or empty. The store reads it and never removes it.
	Transient string
	// Reason is the text of the error while Errored or Recovering, else empty.
	Reason string
	// Index sums up the shard index while Available; zero otherwise.
	Index IndexInfo
}

// IndexInfo sums up a shard index and the source it was built from.
type IndexInfo struct {
	// Blocks counts the indexed sections, duplicates included.
	Blocks uint64
	// PayloadBytes is the sum of the block lengths.
	PayloadBytes uint64
	// SourceSize is the length of the CAR file in bytes.
	SourceSize uint64
	// Digest names the content: see package index, "binding".
	Digest [32]byte
}
