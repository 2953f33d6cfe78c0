package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// FileMount is a regular file of the operating system. Directories, pipes, devices
// and sockets are refused with [ErrNotRegular], without waiting for a writer or
// touching the device.
type FileMount struct {
	// Path is absolute, or relative to the working directory. It is used as it is.
	Path string
	// Roots confines the mount, if not empty: the file must lie in one of these
	// directories, and no symbolic link on the way may lead out of it
	// ([ErrOutsideRoots]). It belongs to the template and is not in the URL.
	Roots []string
}

var _ Mount = (*FileMount)(nil)

// Fetch opens the file. The reader is an *os.File.
func (f *FileMount) Fetch(ctx context.Context) (Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// First a look without opening: opening alone can rewind a tape.
	if st, err := f.lookup(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, f.notRegular(st)
	}
	file, err := f.open()
	if err != nil {
		return nil, err
	}
	// Then again on what was opened: the name may have changed hands in between.
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = f.notRegular(st)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (f *FileMount) notRegular(st fs.FileInfo) error {
	return fmt.Errorf("open %q: %w but %s", f.Path, ErrNotRegular, st.Mode().Type())
}

// openFlags never wait for the other end of a pipe.
const openFlags = os.O_RDONLY | openNonblock

func (f *FileMount) open() (file *os.File, err error) {
	if len(f.Roots) == 0 {
		return os.OpenFile(f.Path, openFlags, 0)
	}
	err = f.confined(func(root *os.Root, rel string) error {
		file, err = root.OpenFile(rel, openFlags, 0)
		return err
	})
	return file, err
}

func (f *FileMount) lookup() (st fs.FileInfo, err error) {
	if len(f.Roots) == 0 {
		return os.Stat(f.Path)
	}
	err = f.confined(func(root *os.Root, rel string) error {
		st, err = root.Stat(rel)
		return err
	})
	return st, err
}

// confined calls do with the first of the roots that contains the path, and the
// path within it. The os.Root refuses symbolic links that lead out.
func (f *FileMount) confined(do func(root *os.Root, rel string) error) error {
	path, err := filepath.Abs(f.Path)
	if err != nil {
		return err
	}
	for _, dir := range f.Roots {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		err = do(root, rel)
		if err != nil && escapes(path, err) {
			return fmt.Errorf("open %q: %w: a symbolic link leads out of %q", f.Path, ErrOutsideRoots, dir)
		}
		return err
	}
	return fmt.Errorf("open %q: %w", f.Path, ErrOutsideRoots)
}

// escapes tells whether an os.Root refused path because it leads out. The os
// package does not export that error; it is the one that wraps no system error.
func escapes(path string, err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe) && strings.Contains(pe.Err.Error(), "escapes from parent")
}

// Info says local, with every kind of access.
func (f *FileMount) Info() Info {
	return Info{Kind: KindLocal, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}

// Stat describes the file.
func (f *FileMount) Stat(ctx context.Context) (Stat, error) {
	if err := ctx.Err(); err != nil {
		return Stat{}, err
	}
	st, err := f.lookup()
	return fileStat(f.Path, st, err)
}

// Serialize returns file:///abs/path or file:relative/path, escaped so that every
// byte of the path comes back.
func (f *FileMount) Serialize() *url.URL { return pathToURL(f.Path, runtime.GOOS == "windows") }

// Deserialize also reads the predecessor's form, the whole path in the host's
// place, and hand-written file://localhost/abs and file://dir/relative.
func (f *FileMount) Deserialize(u *url.URL) error {
	path, err := urlToPath(u, runtime.GOOS == "windows")
	if err != nil {
		return malformed(fmt.Errorf("file mount: path in the URL: %w", err))
	}
	if path == "" {
		return malformed(errors.New("file mount: no path in the URL; want file:///path"))
	}
	f.Path = path
	return nil
}

// pathToURL puts a path into a URL:
//
//	/abs/a b.car     file:///abs/a%20b.car     Path
//	C:\a.car         file:///C:%5Ca.car        Path with a slash before it (windows)
//	anything else    file:dir/a%3F.car         Opaque
func pathToURL(path string, windows bool) *url.URL {
	switch {
	case strings.HasPrefix(path, "/"):
		return &url.URL{Path: path}
	case windows && hasDrive(path):
		return &url.URL{Path: "/" + path}
	}
	return &url.URL{Opaque: escapeOpaque(path)}
}

// urlToPath is the inverse of pathToURL, and reads the older forms.
func urlToPath(u *url.URL, windows bool) (string, error) {
	if u.Opaque != "" {
		return url.PathUnescape(u.Opaque)
	}
	if u.Host != "" && (u.Host != "localhost" || u.Path == "") {
		return u.Host + u.Path, nil
	}
	if path, ok := strings.CutPrefix(u.Path, "/"); ok && windows && hasDrive(path) {
		return path, nil
	}
	return u.Path, nil
}

// hasDrive: the path starts with a letter and a colon.
func hasDrive(path string) bool {
	return len(path) >= 2 && path[1] == ':' && ('a' <= path[0]|0x20 && path[0]|0x20 <= 'z')
}

// escapeOpaque escapes s for the Opaque part of a URL. Go neither escapes nor
// checks that part, so everything but the plainest bytes goes.
func escapeOpaque(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == '~', c == '/' && i > 0:
			b.WriteByte(c)
		default:
			b.WriteString("%" + string(hex[c>>4]) + string(hex[c&15]))
		}
	}
	return b.String()
}

// Close does nothing; readers have descriptors of their own.
func (f *FileMount) Close() error { return nil }
