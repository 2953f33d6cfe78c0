package index

import (
	"sync"

	"github.com/dagstore/dagstore/internal/planted"
)

// MemoryPool is memory that builds which run at once share ([BuildOptions].Pool). Each
// has 1 MiB of its own; what it wants beyond comes from the pool, all of it if nobody
// else wants some. Who gets no more spills what it has.
//
//	Σ have of shares ≤ bytes
type MemoryPool struct {
	bytes int

	mu struct {
		sync.Mutex
		taken int // Σ have
		users int // shares that wanted some
		// hungry: somebody was refused what would be no more than an equal part. Until
		// a share gives something back, none grows beyond that.
		hungry bool
	}
}

// NewMemoryPool returns a pool of so many bytes; 0 means 128 MiB.
func NewMemoryPool(bytes int64) *MemoryPool {
	return &MemoryPool{bytes: memoryOf(bytes)}
}

// share is what one build has of a pool. One of no pool, or nil, is never refused.
type share struct {
	pool *MemoryPool
	have int
	user bool
	over bool
}

// fit makes the share so large that a build can take need bytes, or so small. False
// means that it stays as it is because the others have the rest.
func (s *share) fit(need int) bool {
	if s == nil || s.pool == nil {
		return true
	}
	p := s.pool
	want := max(need-leastMemory, 0)
	if want == s.have && want == 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.over {
		return true
	}
	if !s.user {
		s.user = true
		p.mu.users++
	}
	equal := p.bytes / p.mu.users
	others := p.mu.taken - s.have
	switch {
	case want > equal && p.mu.hungry:
		return false
	case others+want > p.bytes:
		p.mu.hungry = p.mu.hungry || want <= equal
		return false
	}
	if want < s.have {
		p.mu.hungry = false
	}
	p.mu.taken, s.have = others+want, want
	return true
}

// release gives the share back. Idempotent.
func (s *share) release() {
	if s == nil || s.pool == nil {
		return
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.over || planted.Bug("index-memory-not-given-back") {
		return
	}
	s.over = true
	p.mu.taken -= s.have
	s.have = 0
	p.mu.hungry = false
	if s.user {
		p.mu.users--
	}
}
