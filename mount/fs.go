package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strings"
)

// FSMount is a file of an fs.FS. The file system is environment and comes from
// the template; the URL holds the path.
type FSMount struct {
	FS   fs.FS
	Path string
}

var _ Mount = (*FSMount)(nil)

// Fetch opens the file. Its reader can seek and read at offsets if the opened file
// can; otherwise those methods return [ErrSeekUnsupported] and
// [ErrRandomAccessUnsupported].
func (f *FSMount) Fetch(ctx context.Context) (Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.FS == nil {
		return nil, errNoFS
	}
	file, err := f.FS.Open(f.Path)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("open %q: %w but %s", f.Path, ErrNotRegular, st.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	r := &fsReader{File: file, size: st.Size()}
	r.at, _ = file.(io.ReaderAt)
	r.seek, _ = file.(io.Seeker)
	return r, nil
}

var errNoFS = errors.New("fs mount: no file system; set FS in the registered template")

// Info promises sequential access only, for that is all that every fs.FS gives.
func (f *FSMount) Info() Info {
	return Info{Kind: KindLocal, AccessSequential: true}
}

// Stat describes the file.
func (f *FSMount) Stat(ctx context.Context) (Stat, error) {
	if err := ctx.Err(); err != nil {
		return Stat{}, err
	}
	if f.FS == nil {
		return Stat{}, errNoFS
	}
	st, err := fs.Stat(f.FS, f.Path)
	return fileStat(f.Path, st, err)
}

// fileStat makes a Stat of what a stat call returned.
func fileStat(path string, st fs.FileInfo, err error) (Stat, error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Stat{}, nil
	case err != nil:
		return Stat{}, err
	case !st.Mode().IsRegular():
		return Stat{}, fmt.Errorf("stat %q: %w but %s", path, ErrNotRegular, st.Mode().Type())
	}
	return Stat{Exists: true, Size: st.Size(), Ready: true}, nil
}

// Serialize returns fs:<escaped path>.
func (f *FSMount) Serialize() *url.URL {
	return &url.URL{Opaque: escapeOpaque(f.Path)}
}

// Deserialize also reads the predecessor's form, fs://<base name>?path=<path>.
func (f *FSMount) Deserialize(u *url.URL) error {
	path, err := url.PathUnescape(u.Opaque)
	if err != nil {
		return malformed(fmt.Errorf("fs mount: path in the URL: %w", err))
	}
	if path == "" {
		path = u.Query().Get("path")
	}
	if path == "" {
		path = strings.TrimPrefix(u.Host+u.Path, "/")
		if u.Host == "irrecoverable" { // what the predecessor wrote for a missing file
			path = ""
		}
	}
	if path == "" {
		return malformed(errors.New("fs mount: no path in the URL; want fs:<path>"))
	}
	f.Path = path
	return nil
}

// Close does nothing: the file system is the template's.
func (f *FSMount) Close() error { return nil }

// fsReader gives an fs.File the methods it lacks.
type fsReader struct {
	fs.File
	size int64
	at   io.ReaderAt
	seek io.Seeker
}

func (r *fsReader) ReadAt(p []byte, off int64) (int, error) {
	if r.at == nil {
		return 0, ErrRandomAccessUnsupported
	}
	if off >= r.size && len(p) > 0 {
		return 0, io.EOF // fstest.MapFS, for one, calls it an invalid argument
	}
	return r.at.ReadAt(p, off)
}

func (r *fsReader) Seek(off int64, whence int) (int64, error) {
	if r.seek == nil {
		return 0, ErrSeekUnsupported
	}
	return r.seek.Seek(off, whence)
}
