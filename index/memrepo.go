package index

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore/shard"
)

// MemIndexRepo keeps indices in memory, in the form of index files. It implements
// [FullIndexRepo] and [LifeRepo]. The zero value is an empty repository.
type MemIndexRepo struct {
	mu      sync.RWMutex
	indices map[shard.Key][]memIndex // generations ascending, none empty
}

type memIndex struct {
	gen  uint64
	data []byte
}

var (
	_ FullIndexRepo = (*MemIndexRepo)(nil)
	_ LifeRepo      = (*MemIndexRepo)(nil)
	_ PutterContext = (*MemIndexRepo)(nil)
)

// NewMemoryRepo returns an empty repository in memory.
func NewMemoryRepo() *MemIndexRepo { return &MemIndexRepo{} }

func findGen(list []memIndex, gen uint64) (int, bool) {
	return slices.BinarySearchFunc(list, gen, func(m memIndex, gen uint64) int {
		switch {
		case m.gen < gen:
			return -1
		case m.gen > gen:
			return 1
		}
		return 0
	})
}

// PutIndex implements [LifeRepo].
func (m *MemIndexRepo) PutIndex(key shard.Key, gen uint64, d *Draft) error {
	return m.PutIndexContext(context.Background(), key, gen, d)
}

// PutIndexContext implements [PutterContext].
func (m *MemIndexRepo) PutIndexContext(ctx context.Context, key shard.Key, gen uint64, d *Draft) error {
	if err := key.Validate(); err != nil {
		return err
	}
	var buf bytes.Buffer
	if _, err := d.writeTo(ctx, &buf, key, gen); err != nil {
		return fmt.Errorf("index of shard %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.indices == nil {
		m.indices = make(map[shard.Key][]memIndex)
	}
	list := m.indices[key]
	i, found := findGen(list, gen)
	if found {
		list[i].data = buf.Bytes()
		return nil
	}
	m.indices[key] = slices.Insert(list, i, memIndex{gen, buf.Bytes()})
	return nil
}

// OpenIndex implements [LifeRepo].
func (m *MemIndexRepo) OpenIndex(key shard.Key, gen uint64) (*ShardIndex, error) {
	m.mu.RLock()
	list := m.indices[key]
	i, found := findGen(list, gen)
	var data []byte
	if found {
		data = list[i].data
	}
	m.mu.RUnlock()
	if !found {
		return nil, ErrNotFound
	}
	return openBytes(data, "memory")
}

// DropIndex implements [LifeRepo].
func (m *MemIndexRepo) DropIndex(key shard.Key, gen uint64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, found := findGen(m.indices[key], gen)
	if found {
		m.removeLocked(key, i)
	}
	return found, nil
}

func (m *MemIndexRepo) removeLocked(key shard.Key, i int) {
	if list := slices.Delete(m.indices[key], i, i+1); len(list) > 0 {
		m.indices[key] = list
	} else {
		delete(m.indices, key)
	}
}

// SweepIndexes implements [LifeRepo].
func (m *MemIndexRepo) SweepIndexes(alive func(gen uint64) bool) (removed int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, list := range m.indices {
		for i, x := range slices.Backward(list) {
			if !alive(x.gen) {
				m.removeLocked(key, i)
				removed++
			}
		}
	}
	return removed, nil
}

// newest returns the newest index of a key.
func (m *MemIndexRepo) newest(key shard.Key) (memIndex, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := m.indices[key]
	if len(list) == 0 {
		return memIndex{}, false
	}
	return list[len(list)-1], true
}

// GetFullIndex implements [FullIndexRepo].
func (m *MemIndexRepo) GetFullIndex(key shard.Key) (carindex.Index, error) {
	x, ok := m.newest(key)
	if !ok {
		return nil, ErrNotFound
	}
	idx, err := openBytes(x.data, "memory")
	if err != nil {
		return nil, err
	}
	return idx, nil
}

// AddFullIndex implements [FullIndexRepo] under generation 0, as
// [FSIndexRepo.AddFullIndex] does.
func (m *MemIndexRepo) AddFullIndex(key shard.Key, index carindex.Index) error {
	d, err := draftOf(index)
	if err != nil {
		return fmt.Errorf("index of shard %s: %w", key, err)
	}
	defer d.Close()
	return m.PutIndex(key, 0, d)
}

// DropFullIndex implements [FullIndexRepo].
func (m *MemIndexRepo) DropFullIndex(key shard.Key) (dropped bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, dropped = m.indices[key]
	delete(m.indices, key)
	return dropped, nil
}

// StatFullIndex implements [FullIndexRepo].
func (m *MemIndexRepo) StatFullIndex(key shard.Key) (Stat, error) {
	x, ok := m.newest(key)
	return Stat{Exists: ok, Size: uint64(len(x.data))}, nil
}

// Len implements [FullIndexRepo].
func (m *MemIndexRepo) Len() (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.indices), nil
}

// ForEach implements [FullIndexRepo] over the keys of the moment. The visitor may
// use the repository.
func (m *MemIndexRepo) ForEach(visit func(shard.Key) (bool, error)) error {
	m.mu.RLock()
	keys := make([]shard.Key, 0, len(m.indices))
	for key := range m.indices {
		keys = append(keys, key)
	}
	m.mu.RUnlock()
	for _, key := range keys {
		if more, err := visit(key); err != nil || !more {
			return err
		}
	}
	return nil
}

// Size implements [FullIndexRepo].
func (m *MemIndexRepo) Size() (uint64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	total := uint64(0)
	for _, list := range m.indices {
		for _, x := range list {
			total += uint64(len(x.data))
		}
	}
	return total, nil
}
