package mount

import (
	"context"
	"errors"
	"io"
	"net/url"
)

var (
	// ErrSeekUnsupported is returned by Seek of a reader that cannot seek.
	ErrSeekUnsupported = errors.New("mount does not support seek")
	// ErrRandomAccessUnsupported is returned by ReadAt of a reader that can only be
	// read from front to back.
	ErrRandomAccessUnsupported = errors.New("mount does not support random access")
	// ErrUnrecognizedScheme is returned by [Registry.Instantiate] for a URL whose
	// scheme has no template: register one and try again.
	ErrUnrecognizedScheme = errors.New("unrecognized mount scheme")
	// ErrUnrecognizedType is returned by [Registry.Represent] for a mount of a type
	// that was never registered: such a mount could not be revived.
	ErrUnrecognizedType = errors.New("unrecognized mount type")
	// ErrNoMount is returned for a mount that is nil, a nil pointer in the interface too,
	// and for a wrapper around one.
	ErrNoMount = errors.New("no mount")
	// ErrNotRegular is returned for a path that names something other than a
	// regular file: a directory, a pipe, a device, a socket.
	ErrNotRegular = errors.New("not a regular file")
	// ErrOutsideRoots is returned for a path outside the roots that a file mount is
	// confined to.
	ErrOutsideRoots = errors.New("path is outside the configured roots")
	// ErrSourceChanged is returned when the source is no longer what it was when it
	// was registered, probed or first read. What was read before must not be mixed
	// with what would be read now.
	ErrSourceChanged = errors.New("the source has changed")
	// ErrSizeMismatch is returned when a source delivered more or fewer bytes than
	// it promised.
	ErrSizeMismatch = errors.New("the source is not as long as promised")
	// ErrNotFound is returned when the source does not exist (any more).
	ErrNotFound = errors.New("the source does not exist")
	// ErrClosed is returned by a mount or reader that was closed.
	ErrClosed = errors.New("mount or reader is closed")
)

// Kind tells sources on this machine from others.
type Kind int

const (
	// KindLocal: fetching opens something on this machine.
	KindLocal Kind = iota
	// KindRemote: fetching transfers from elsewhere, so that a local copy pays.
	KindRemote
)

// String returns "local" or "remote".
func (k Kind) String() string {
	if k == KindLocal {
		return "local"
	}
	return "remote"
}

// Mount is a source of one shard's bytes: a CAR file, wherever it lives.
//
// The methods of a configured mount may be called concurrently; Deserialize
// configures and is called once, before all others.
type Mount interface {
	// Closer releases what the mount itself holds. It does not end the readers
	// that Fetch returned.
	io.Closer

	// Fetch opens the source for reading from its beginning. Which ways of reading
	// work, Info says. ctx governs the call, and of readers that go on fetching
	// while they are read it governs reading too: when it ends, a read returns soon.
	Fetch(ctx context.Context) (Reader, error)

	// Info describes what any reader of this mount can be relied on to do. It is
	// pure: no I/O, and always the same answer.
	Info() Info

	// Stat describes the source as it is now. That it does not exist is an answer
	// (Exists is false), not an error.
	Stat(ctx context.Context) (Stat, error)

	// Serialize returns the URL that revives the mount. It carries no secret. The
	// registry sets its scheme.
	Serialize() *url.URL

	// Deserialize configures the mount from such a URL, and must not keep it.
	Deserialize(*url.URL) error
}

// Reader reads a source. ReadAt may be called concurrently, and Close at any time,
// also during a read, which then returns soon. Close more than once is harmless.
type Reader interface {
	io.Closer
	io.Reader
	io.ReaderAt
	io.Seeker
}

// Info says what a mount's readers can do.
type Info struct {
	Kind Kind
	// AccessSequential: Read works.
	AccessSequential bool
	// AccessSeek: Seek works.
	AccessSeek bool
	// AccessRandom: ReadAt works.
	AccessRandom bool
}

// Stat describes a source.
type Stat struct {
	// Exists says whether there is such a source.
	Exists bool
	// Size is its length in bytes; 0 also when the source does not tell. A Filecoin
	// piece may state its padded size, a power of two, and deliver 127 of 128 bytes.
	Size int64
	// Ready says whether a fetch would deliver now. A source that must be unsealed
	// or recalled from tape first exists and is not ready.
	Ready bool
}

// NopCloser makes a [Reader] of parts that need no closing.
type NopCloser struct {
	io.Reader
	io.ReaderAt
	io.Seeker
}

// Close does nothing and returns nil.
func (*NopCloser) Close() error { return nil }
