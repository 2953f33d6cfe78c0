package dagstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"sync"
	"syscall"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// The world around a simulated store: contents that shards may have, sources that
// hold them, and mounts that bring them when, and as badly as, the simulator says.

// content is what a source can hold.
type content struct {
	data   []byte
	blocks []blocks.Block
	digest [32]byte // of its index; zero: it cannot be indexed
}

// simContents are CARs of one to five blocks that have blocks in common, and, last,
// bytes that are no CAR.
var simContents = sync.OnceValue(func() []*content {
	var pool []blocks.Block
	for i := range 12 {
		data := bytes.Repeat(fmt.Appendf(nil, "block %d ", i), 1+i*i)
		c, err := cid.Cast(hostile.RawCID(data))
		if err != nil {
			panic(err)
		}
		b, err := blocks.NewBlockWithCid(data, c)
		if err != nil {
			panic(err)
		}
		pool = append(pool, b)
	}
	var all []*content
	for i := range 14 {
		c := &content{}
		var sections [][]byte
		for j := range 1 + i%5 {
			b := pool[(i*5+j*3)%len(pool)]
			c.blocks = append(c.blocks, b)
			sections = append(sections, hostile.Raw(b.RawData()))
		}
		if c.data = hostile.V1(sections...); i%3 == 2 {
			c.data = hostile.V2(c.data)
		}
		d, err := index.Build(context.Background(), bytes.NewReader(c.data), int64(len(c.data)), index.BuildOptions{})
		if err != nil {
			panic(err)
		}
		c.digest = d.Info().Digest
		all = append(all, c)
	}
	return append(all, &content{data: []byte("this is no CAR, whatever it is called")})
})

// carSource is where the bytes of one life of a shard come from.
type carSource struct {
	name     string
	key      shard.Key
	content  *content
	history  []*content // all that it ever held
	exists   bool
	ready    bool
	readErr  bool // reads fail, also of readers that are open
	rotten   bool // reads return other bytes, also of readers that are open
	fetching int  // open readers of a stream
	most     int
}

func (s *carSource) holds(digest [32]byte) bool {
	for _, c := range s.history {
		if c.digest == digest {
			return true
		}
	}
	return false
}

func (s *carSource) hasData(data []byte) bool {
	for _, c := range s.history {
		if bytes.Equal(c.data, data) {
			return true
		}
	}
	return false
}

func (s *carSource) set(c *content) {
	s.content = c
	s.history = append(s.history, c)
}

// verdict is what the simulator decides about one call of a mount.
type verdict uint8

const (
	verdictOK verdict = iota
	verdictError
	verdictMissing
	verdictNotReady
	verdictAway        // the disk is not mounted
	verdictDescriptors // the process has no more
	verdictPanic
	verdictShort  // the stream ends early
	verdictMidway // the stream fails in the middle
	verdictPause  // the stream waits at another gate in the middle

	numVerdicts
)

var verdictNames = [numVerdicts]string{"ok", "error", "missing", "not-ready", "away", "descriptors", "panic", "short", "midway", "pause"}

func (v verdict) String() string { return verdictNames[v] }

// err is the error of a call that a verdict lets fail.
func (v verdict) err(op string) error {
	switch v {
	case verdictError:
		return errSim
	case verdictAway:
		return &fs.PathError{Op: op, Path: "/mnt/x.car", Err: syscall.ENOENT}
	case verdictDescriptors:
		return &fs.PathError{Op: op, Path: "/mnt/x.car", Err: syscall.EMFILE}
	}
	return nil
}

// passingTexts are in the errors of what passes: of sources that cannot be had, and of a
// machine that is short of something. No such error is a shard's recorded fate.
var passingTexts = []string{errSim.Error(), mount.ErrNotFound.Error(), fs.ErrNotExist.Error(), syscall.ENOENT.Error(), syscall.EMFILE.Error(), syscall.ENOSPC.Error()}

// gate is a call that waits for the simulator's verdict. It does not watch its
// context: a mount that ignores it is what the store must cope with.
type gate struct {
	what string
	src  *carSource // nil: an operation of the disk
	ctx  context.Context
	open chan verdict
}

// world holds sources and gates.
type world struct {
	mu      sync.Mutex
	sources map[string]*carSource
	gates   []*gate
	// free: nobody waits at gates; calls do what the source's state says.
	free bool
}

var errSim = errors.New("simulated fault")

// pass waits at a gate.
func (w *world) pass(ctx context.Context, what string, src *carSource) verdict {
	w.mu.Lock()
	if w.free {
		w.mu.Unlock()
		return verdictOK
	}
	g := &gate{what: what, src: src, ctx: ctx, open: make(chan verdict)}
	w.gates = append(w.gates, g)
	w.mu.Unlock()
	return <-g.open
}

// simMount reads a source in place, or if stream is set, as a stream only.
type simMount struct {
	w      *world
	stream bool
	Name   string
}

// streamMount has a type of its own, for the registry knows mounts by type.
type streamMount struct{ simMount }

func (m *simMount) source() *carSource {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.w.sources[m.Name]
}

func (m *simMount) Close() error { return nil }
func (m *simMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true, AccessSeek: !m.stream, AccessRandom: !m.stream}
}
func (m *simMount) Serialize() *url.URL { return &url.URL{Opaque: m.Name} }
func (m *simMount) Deserialize(u *url.URL) error {
	m.Name = u.Opaque
	if m.source() == nil {
		return fmt.Errorf("no source is called %q", m.Name)
	}
	return nil
}

func (m *simMount) Stat(ctx context.Context) (mount.Stat, error) {
	src := m.source()
	v := m.w.pass(ctx, "stat", src)
	m.w.mu.Lock()
	st := mount.Stat{Exists: src.exists, Size: int64(len(src.content.data)), Ready: src.ready}
	m.w.mu.Unlock()
	if err := v.err("stat"); err != nil {
		return mount.Stat{}, err
	}
	switch v {
	case verdictMissing:
		return mount.Stat{}, nil
	case verdictNotReady:
		st.Ready = false
	case verdictPanic:
		panic("simulated panic of a mount")
	}
	if !st.Exists {
		return mount.Stat{}, nil
	}
	return st, nil
}

func (m *simMount) Fetch(ctx context.Context) (mount.Reader, error) {
	src := m.source()
	v := m.w.pass(ctx, "fetch", src)
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	switch {
	case v == verdictPanic:
		panic("simulated panic of a mount")
	case v.err("open") != nil:
		return nil, v.err("open")
	case v == verdictMissing, !src.exists:
		return nil, mount.ErrNotFound
	}
	data := src.content.data
	r := &simReader{w: m.w, src: src, held: src.content, ctx: ctx, stream: m.stream, plan: v, size: int64(len(data))}
	if v == verdictShort {
		data = data[:len(data)*2/3]
	}
	r.Reader = bytes.NewReader(data)
	if m.stream {
		src.fetching++
		src.most = max(src.most, src.fetching)
	}
	return r, nil
}

// simReader reads what the source held when it was fetched.
type simReader struct {
	*bytes.Reader
	w      *world
	src    *carSource
	held   *content // what is read
	ctx    context.Context
	stream bool
	size   int64
	plan   verdict
	reads  int
	closed bool
}

func (r *simReader) Read(p []byte) (int, error) {
	r.w.mu.Lock()
	r.reads++
	second := r.reads == 2
	closed := r.closed
	r.w.mu.Unlock()
	switch {
	case closed:
		return 0, mount.ErrClosed
	case second && r.plan == verdictMidway:
		return 0, errSim
	case second && r.plan == verdictPause:
		if r.w.pass(r.ctx, "read", r.src) == verdictError {
			return 0, errSim
		}
	}
	if r.stream && len(p) > 48 && r.reads == 1 {
		p = p[:48] // so that there is a middle
	}
	return r.Reader.Read(p)
}

func (r *simReader) ReadAt(p []byte, off int64) (int, error) {
	if r.stream {
		return 0, mount.ErrRandomAccessUnsupported
	}
	r.w.mu.Lock()
	fails, rotten, closed := r.src.readErr, r.src.rotten, r.closed
	r.w.mu.Unlock()
	switch {
	case closed:
		return 0, mount.ErrClosed
	case fails:
		return 0, errSim
	}
	n, err := r.Reader.ReadAt(p, off)
	if rotten && n > 0 {
		p[n/2] ^= 0x10
	}
	return n, err
}

func (r *simReader) Seek(off int64, whence int) (int64, error) {
	if r.stream {
		return 0, mount.ErrSeekUnsupported
	}
	return r.Reader.Seek(off, whence)
}

// Size is what the source said, also of a stream that ends early.
func (r *simReader) Size() int64 { return r.size }

func (r *simReader) Close() error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if !r.closed && r.stream {
		r.src.fetching--
	}
	r.closed = true
	return nil
}
