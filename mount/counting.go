package mount

import (
	"context"
	"errors"
	"net/url"
	"sync/atomic"
)

// Counting is another mount that counts how often it is fetched.
//
// To make it storable, register new(Counting) under a scheme of its own; if the
// inner mount's type is registered too, its URL is scheme:<inner URL>. Otherwise
// the template must hold a template of the inner mount, and the URL is the inner
// mount's under this scheme.
type Counting struct {
	Mount

	n atomic.Int64
}

var (
	_ Mount  = (*Counting)(nil)
	_ Cloner = (*Counting)(nil)
)

// Fetch counts and fetches.
func (c *Counting) Fetch(ctx context.Context) (Reader, error) {
	c.n.Add(1)
	return c.Mount.Fetch(ctx)
}

// Count returns how many times Fetch was called, failed ones included.
func (c *Counting) Count() int { return int(c.n.Load()) }

// Deserialize configures the inner mount.
func (c *Counting) Deserialize(u *url.URL) error {
	if isNil(c.Mount) {
		return errors.New("counting mount: neither does the URL name a registered inner scheme nor has the template an inner mount")
	}
	return c.Mount.Deserialize(u)
}

// CloneMount returns a Counting with a copy of the inner mount and a count of zero.
func (c *Counting) CloneMount() Mount {
	if isNil(c.Mount) {
		return new(Counting)
	}
	return &Counting{Mount: clone(c.Mount)}
}
