package compat

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// pieces is where the sources of both stores are, as lotus's sealing API is: a directory
// of files, some of which stall.
type pieces struct {
	dir string

	mu      sync.Mutex
	fetched map[string]int
}

// fetchedOf says how often a source was opened.
func (p *pieces) fetchedOf(id string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetched[id]
}

func (p *pieces) path(id string) string { return filepath.Join(p.dir, id) }

// put stores a source. stallAt says after how many bytes reading it does not go on; less
// than 0, it does.
func (p *pieces) put(id string, data []byte, stallAt int) error {
	if stallAt >= 0 {
		if err := os.WriteFile(p.path(id)+".stall", []byte(strconv.Itoa(stallAt)), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(p.path(id), data, 0o600)
}

// heal lets every source be read.
func (p *pieces) heal() error {
	stalls, err := filepath.Glob(p.path("*.stall"))
	for _, s := range stalls {
		if err == nil {
			err = os.Remove(s)
		}
	}
	return err
}

func (p *pieces) stat(id string) (exists bool, size int64, err error) {
	info, err := os.Stat(p.path(id))
	if os.IsNotExist(err) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, err
	}
	return true, info.Size(), nil
}

// open opens a source. What it returns can seek and read anywhere, though one mount hides
// that.
func (p *pieces) open(ctx context.Context, id string) (*source, error) {
	p.mu.Lock()
	if p.fetched == nil {
		p.fetched = make(map[string]int)
	}
	p.fetched[id]++
	p.mu.Unlock()
	f, err := os.Open(p.path(id))
	if err != nil {
		return nil, err
	}
	left := int64(-1)
	if b, err := os.ReadFile(p.path(id) + ".stall"); err == nil {
		n, err := strconv.Atoi(string(b))
		if err != nil {
			return nil, err
		}
		left = int64(n)
	}
	return &source{File: f, ctx: ctx, left: left}, nil
}

// source is an open source.
type source struct {
	*os.File
	ctx  context.Context
	left int64 // before it stalls; less than 0: it does not
}

func (s *source) Read(b []byte) (int, error) {
	if s.left == 0 {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	if s.left > 0 {
		b = b[:min(int64(len(b)), s.left)]
	}
	n, err := s.File.Read(b)
	if s.left > 0 {
		s.left -= int64(n)
	}
	return n, err
}

func (s *source) ReadAt(b []byte, off int64) (int, error) {
	if s.left >= 0 && off+int64(len(b)) > s.left {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	return s.File.ReadAt(b, off)
}

// WriteTo keeps io.Copy from going around Read.
func (s *source) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{s})
}

// pieceURL and pieceOf are what both stores' mounts have in their URLs.
func pieceURL(scheme, id string) *url.URL { return &url.URL{Scheme: scheme, Host: id} }

func pieceOf(u *url.URL) (string, error) {
	if u.Host == "" || strings.Contains(u.Host, "/") {
		return "", fmt.Errorf("no piece in %q", u)
	}
	return u.Host, nil
}
