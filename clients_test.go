package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/testdata"
)

// pieceMount serves a Filecoin piece as the mounts of live daemons do: what Stat says
// is the padded size of the deal, what Fetch gives is unpadded, with zeros behind the
// CAR. In place, its reader can seek, but not from the end.
type pieceMount struct {
	API     *pieceAPI // of the template
	Piece   string
	InPlace bool
}

type pieceAPI struct {
	car    []byte
	padded int64
	broken error
}

func (p *pieceMount) Serialize() *url.URL          { return &url.URL{Host: p.Piece} }
func (p *pieceMount) Deserialize(u *url.URL) error { p.Piece = u.Host; return nil }
func (p *pieceMount) Close() error                 { return nil }
func (p *pieceMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true, AccessSeek: p.InPlace, AccessRandom: p.InPlace}
}
func (p *pieceMount) Stat(context.Context) (mount.Stat, error) {
	return mount.Stat{Exists: true, Size: p.API.padded, Ready: true}, nil
}

func (p *pieceMount) Fetch(context.Context) (mount.Reader, error) {
	piece := make([]byte, p.API.padded/128*127)
	copy(piece, p.API.car)
	r := bytes.NewReader(piece)
	if !p.InPlace {
		return &mount.NopCloser{Reader: r}, nil
	}
	return &pieceReader{Reader: r, broken: p.API.broken}, nil
}

type pieceReader struct {
	*bytes.Reader
	broken error
}

func (r *pieceReader) Size() {} // not the method that tells the length
func (r *pieceReader) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return 0, errSeekEnd
	}
	return r.Reader.Seek(off, whence)
}

func (r *pieceReader) ReadAt(p []byte, off int64) (int, error) {
	if r.broken != nil && off > 1000 {
		return 0, r.broken
	}
	return r.Reader.ReadAt(p, off)
}
func (r *pieceReader) Close() error { return nil }

var errSeekEnd = errors.New("only from the start")

// TestPieces: the mounts of Filecoin daemons work, copied and in place, before and
// after a GC, which makes a copy be fetched anew, and a restart.
func TestPieces(t *testing.T) {
	for name, inPlace := range map[string]bool{"copied": false, "in place": true} {
		t.Run(name, func(t *testing.T) {
			api := &pieceAPI{car: testdata.CarV2, padded: 1 << 19}
			dir, k := t.TempDir(), key("piece")
			open := func() *dagstore.DAGStore {
				d, err := dagstore.Open(background, dir, dagstore.WithMount("piece", &pieceMount{API: api, InPlace: inPlace}))
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			d := open()
			register(t, d, k, &pieceMount{API: api, Piece: "x", InPlace: inPlace})
			works(t, d, k)
			if _, err := d.GC(background); err != nil {
				t.Fatal(err)
			}
			works(t, d, k)
			closeStore(t, d)
			d = open()
			works(t, d, k)
			closeStore(t, d)
		})
	}
}

// TestPieceThatFails: looking for the end of a source does not take a failure for it.
func TestPieceThatFails(t *testing.T) {
	boom := errors.New("boom")
	api := &pieceAPI{car: testdata.CarV2, padded: 1 << 19, broken: boom}
	d, err := dagstore.Open(background, t.TempDir(), dagstore.WithMount("piece", &pieceMount{API: api, InPlace: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, d)
	k := key("piece")
	_, err = d.RegisterShardSync(background, k, &pieceMount{API: api, Piece: "x", InPlace: true}, dagstore.RegisterOpts{})
	wantErr(t, "register", err, boom)
	wantErr(t, "register", err, errSeekEnd)
	api.broken = nil
	if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	works(t, d, k)
}

// longMount has a URL that is longer than what is shown of one, and a secret in it.
type longMount struct{ pieceMount }

func (*longMount) Serialize() *url.URL {
	return &url.URL{Host: "h", User: url.UserPassword("me", "secret"), Path: "/" + strings.Repeat("x", 600), RawQuery: "token=secret"}
}

// TestLongURL: what is shown of a long URL is masked before it is cut. Proves S6
// (user information in lists and explanations).
func TestLongURL(t *testing.T) {
	api := &pieceAPI{car: testdata.CarV2, padded: 1 << 19}
	d, err := dagstore.Open(background, t.TempDir(), dagstore.WithMount("long", &longMount{pieceMount{API: api}}))
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, d)
	register(t, d, key("x"), &longMount{pieceMount{API: api}})
	page, err := d.ListShards(dagstore.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := d.Explain(key("x"))
	if err != nil {
		t.Fatal(err)
	}
	for what, shown := range map[string]string{"list": page.Shards[0].URL, "explanation": x.String()} {
		if strings.Contains(shown, "secret") || !strings.Contains(shown, "long://xxxxx@h/xxx") {
			t.Errorf("%s: %s", what, shown)
		}
	}
}
