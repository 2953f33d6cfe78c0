package compat

import (
	"context"
	"net/url"

	old "github.com/filecoin-project/dagstore/mount"

	"github.com/dagstore/dagstore/mount"
)

// OldLotus is lotus's mount for the predecessor: what it needs is in the registered
// template, and its URL names the piece. It reads in place.
type OldLotus struct {
	Pieces *pieces // exported, as all of a template has to be for the predecessor to copy it
	ID     string
}

func (m *OldLotus) Fetch(ctx context.Context) (old.Reader, error) { return m.Pieces.open(ctx, m.ID) }
func (m *OldLotus) Info() old.Info {
	return old.Info{Kind: old.KindRemote, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}
func (m *OldLotus) Stat(context.Context) (old.Stat, error) {
	exists, size, err := m.Pieces.stat(m.ID)
	return old.Stat{Exists: exists, Size: size, Ready: true}, err
}
func (m *OldLotus) Serialize() *url.URL                { return pieceURL("lotus", m.ID) }
func (m *OldLotus) Deserialize(u *url.URL) (err error) { m.ID, err = pieceOf(u); return err }
func (m *OldLotus) Close() error                       { return nil }

// OldStream is a mount for the predecessor that streams, so that a copy is made.
type OldStream struct{ OldLotus }

func (m *OldStream) Info() old.Info      { return old.Info{Kind: old.KindRemote, AccessSequential: true} }
func (m *OldStream) Serialize() *url.URL { return pieceURL("stream", m.ID) }

// LotusMount and StreamMount are the same with the import path changed, and no more.
type LotusMount struct {
	Pieces *pieces
	ID     string
}

func (m *LotusMount) Fetch(ctx context.Context) (mount.Reader, error) {
	return m.Pieces.open(ctx, m.ID)
}
func (m *LotusMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}
func (m *LotusMount) Stat(context.Context) (mount.Stat, error) {
	exists, size, err := m.Pieces.stat(m.ID)
	return mount.Stat{Exists: exists, Size: size, Ready: true}, err
}
func (m *LotusMount) Serialize() *url.URL                { return pieceURL("lotus", m.ID) }
func (m *LotusMount) Deserialize(u *url.URL) (err error) { m.ID, err = pieceOf(u); return err }
func (m *LotusMount) Close() error                       { return nil }

type StreamMount struct{ LotusMount }

func (m *StreamMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true}
}
func (m *StreamMount) Serialize() *url.URL { return pieceURL("stream", m.ID) }
