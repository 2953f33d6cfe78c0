package carscan

import (
	"errors"
	"fmt"
)

// Kinds of [Error], to be used with errors.Is.
var (
	// ErrMalformed: the bytes are not a CAR.
	ErrMalformed = errors.New("malformed CAR")
	// ErrNotFinalised: a CARv2 whose header was never filled in. It is ErrMalformed too.
	ErrNotFinalised = fmt.Errorf("%w: a CARv2 that was not finalised", ErrMalformed)
	// ErrTruncated: the file ends before what it promises.
	ErrTruncated = errors.New("truncated CAR")
	// ErrLimit: a bound of Options was exceeded.
	ErrLimit = errors.New("CAR exceeds a limit")
	// ErrHashMismatch: a block does not hash to its CID.
	ErrHashMismatch = errors.New("block does not match its CID")
	// ErrUnsupportedHash: a hash function or digest length that proves nothing here.
	ErrUnsupportedHash = errors.New("unsupported multihash")
	// ErrUnsupportedVersion: a CAR version other than 1 and 2.
	ErrUnsupportedVersion = errors.New("unsupported CAR version")
)

// Error says what is wrong with a file, and where.
type Error struct {
	Offset int64  // byte offset in the file
	What   string // what was found there
	Err    error  // the kind
}

func (e *Error) Error() string {
	return fmt.Sprintf("%v: at offset %d: %s", e.Err, e.Offset, e.What)
}

func (e *Error) Unwrap() error { return e.Err }

func bad(kind error, offset int64, format string, args ...any) *Error {
	return &Error{Offset: offset, What: fmt.Sprintf(format, args...), Err: kind}
}
