package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// FileMount is a regular file of the operating system. Directories, pipes, devices
// and sockets are refused with [ErrNotRegular], without waiting for a writer or
// touching the device.
type FileMount struct {
	// Path is absolute, or relative to the working directory. It is used as it is, except
	// that of a registered mount a relative one is taken from where the working directory
	// was then, so that it names the same file wherever this process, or the next one, is:
	// see [Anchor].
	Path string
	// Roots confines the mount, if not empty: the file must lie in one of these
	// directories, and no symbolic link on the way may lead out of it
	// ([ErrOutsideRoots]). It belongs to the template and is not in the URL. Name
	// absolute ones: relative ones are taken from the working directory of the moment.
	Roots []string

	anchor anchor // guarded by anchors
}

// anchor is what the relative paths of a mount became when it was anchored.
type anchor struct {
	path, abs string
	dir       string // the working directory
}

// anchors guards the anchors of all mounts: a lock within each would forbid copying
// them, as templates are.
var anchors sync.RWMutex

// fix takes the mount's relative paths from the working directory that there is now.
// Nothing of them is cleaned: a/../b is not b where a is a link.
func (f *FileMount) fix() error {
	anchors.Lock()
	defer anchors.Unlock()
	if f.anchor.abs != "" && f.anchor.path == f.Path || f.Path == "" ||
		filepath.IsAbs(f.Path) && !slices.ContainsFunc(f.Roots, relative) {
		return nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("file mount: path %q is relative: %w", f.Path, err)
	}
	f.anchor = anchor{f.Path, absolute(dir, f.Path), dir}
	return nil
}

// Anchor makes the relative paths of file mounts in m absolute where they are used, and in
// the URL that describes m: they are taken from the working directory that there is now,
// once, for a mount that is still in another directory, or is revived by a process that is,
// would be another file. FileMount.Path stays as it is. It finds file mounts also in
// wrappers, as far as their fields are exported. A store anchors what is registered.
func Anchor(m Mount) error { return anchorWithin(m, maxWrappers) }

// maxWrappers is how many mounts may lie around one another, should they lie in a circle.
const maxWrappers = 16

func anchorWithin(m Mount, depth int) error {
	if isNil(m) {
		return ErrNoMount
	}
	switch m := m.(type) {
	case *FileMount:
		return m.fix()
	case *Upgrader:
		return anchorWithin(m.Underlying(), depth)
	}
	v := reflect.ValueOf(m)
	if depth == 0 || v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	for i := range v.Elem().NumField() {
		f := v.Elem().Field(i)
		if !f.CanInterface() {
			continue
		}
		if f.Kind() == reflect.Struct {
			if f = f.Addr(); !f.Type().Implements(reflect.TypeFor[Mount]()) {
				continue
			}
		} else if k := f.Kind(); k != reflect.Interface && k != reflect.Pointer || f.IsNil() {
			continue
		}
		if inner, ok := f.Interface().(Mount); ok && !isNil(inner) {
			if err := anchorWithin(inner, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

func relative(path string) bool { return !filepath.IsAbs(path) }

// absolute returns a path that is taken from dir.
func absolute(dir, path string) string {
	switch {
	case filepath.IsAbs(path):
		return path
	case runtime.GOOS == "windows": // which has paths that are relative to a drive
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	return strings.TrimSuffix(dir, string(filepath.Separator)) + string(filepath.Separator) + path
}

// where returns the path to be opened, and the directory from which relative roots are
// taken; "" for the working directory.
func (f *FileMount) where() (path, dir string) {
	anchors.RLock()
	defer anchors.RUnlock()
	if f.anchor.abs != "" && f.anchor.path == f.Path {
		return f.anchor.abs, f.anchor.dir
	}
	return f.Path, ""
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
		path, _ := f.where()
		return os.OpenFile(path, openFlags, 0)
	}
	err = f.confined(func(root *os.Root, rel string) error {
		file, err = root.OpenFile(rel, openFlags, 0)
		return err
	})
	return file, err
}

func (f *FileMount) lookup() (st fs.FileInfo, err error) {
	if len(f.Roots) == 0 {
		path, _ := f.where()
		return os.Stat(path)
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
	path, from := f.where()
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	for _, dir := range f.Roots {
		if from != "" {
			dir = absolute(from, dir)
		}
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
func (f *FileMount) Serialize() *url.URL {
	path, _ := f.where()
	return pathToURL(path, runtime.GOOS == "windows")
}

// Deserialize also reads the predecessor's form, the whole path in the host's
// place, and hand-written file://localhost/abs and file://dir/relative. Relative paths,
// which stores of the predecessor hold, are taken from the working directory of whoever
// opens the file.
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
