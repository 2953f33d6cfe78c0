package mount

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// Registry knows the mount types by their URL schemes. It holds a template for
// each: a mount that has everything but what its URL says. The zero Registry is
// empty and ready. All methods may be called concurrently.
type Registry struct {
	mu       sync.RWMutex
	byScheme map[string]Mount
	byType   map[reflect.Type]string // the scheme registered last
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return new(Registry) }

// Cloner is an extra power of a template: to make the copy that Instantiate
// configures. A template without it is copied field by field, and the mounts
// within it (a wrapper's inner mount) likewise. A type needs it if templates may
// be in use as mounts while they are copied, or if a plain copy would share what
// must not be shared.
type Cloner interface {
	// CloneMount returns a new mount of the receiver's own type.
	CloneMount() Mount
}

// schemeLimiter is implemented by mounts that make sense under some schemes only.
type schemeLimiter interface{ allowedSchemes() []string }

// Register makes template the mount type of URLs with this scheme, which must be
// as RFC 3986 spells schemes (upper case is lowered) and not yet taken. A template
// is a non-nil pointer to a struct. A type may have several schemes.
func (r *Registry) Register(scheme string, template Mount) error {
	scheme = strings.ToLower(scheme)
	if !validScheme(scheme) {
		return fmt.Errorf("register mount: %q is not a URL scheme: use letters, digits, '+', '-' and '.', a letter first", scheme)
	}
	v := reflect.ValueOf(template)
	if !v.IsValid() || v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("register mount scheme %q: template %T must be a non-nil pointer to a struct", scheme, template)
	}
	if l, ok := template.(schemeLimiter); ok && !slices.Contains(l.allowedSchemes(), scheme) {
		return fmt.Errorf("register mount scheme %q: %T serves only %s", scheme, template, strings.Join(l.allowedSchemes(), ", "))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.byScheme[scheme]; ok {
		return fmt.Errorf("register mount scheme %q: taken by %T", scheme, old)
	}
	if r.byScheme == nil {
		r.byScheme, r.byType = make(map[string]Mount), make(map[reflect.Type]string)
	}
	r.byScheme[scheme] = template
	r.byType[v.Type()] = scheme
	return nil
}

// validScheme: ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ), lower case.
func validScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z':
		case i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.'):
		default:
			return false
		}
	}
	return s != ""
}

// Schemes returns the registered schemes in order.
func (r *Registry) Schemes() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.byScheme))
}

// Instantiate revives the mount that u describes: a copy of the template for its
// scheme, configured by its Deserialize, whose error is returned wrapped. Mounts
// from two calls share nothing that either may change. Without a template for the
// scheme the error wraps [ErrUnrecognizedScheme].
func (r *Registry) Instantiate(u *url.URL) (Mount, error) {
	if u == nil {
		return nil, errors.New("instantiate mount: no URL")
	}
	r.mu.RLock()
	template, ok := r.byScheme[strings.ToLower(u.Scheme)]
	r.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("instantiate mount: %w: %q", ErrUnrecognizedScheme, u.Scheme)
	}
	if c, ok := template.(*Counting); ok {
		if inner, ok := r.innerURL(u); ok {
			m, err := r.Instantiate(inner)
			if err != nil {
				return nil, err
			}
			clone := c.CloneMount().(*Counting)
			clone.Mount = m
			return clone, nil
		}
	}
	m := clone(template)
	if err := m.Deserialize(u); err != nil {
		return nil, fmt.Errorf("instantiate %T from a %s URL: %w", template, u.Scheme, err)
	}
	return m, nil
}

// innerURL returns the URL within a URL of the form scheme:innerScheme:rest, if
// innerScheme is registered.
func (r *Registry) innerURL(u *url.URL) (*url.URL, bool) {
	_, rest, ok := strings.Cut(u.String(), ":")
	if !ok || u.Opaque == "" {
		return nil, false
	}
	inner, err := ParseURL(rest)
	if err != nil || inner.Scheme == "" {
		return nil, false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok = r.byScheme[inner.Scheme]
	return inner, ok
}

// Represent returns the URL that revives m: its Serialize, under the scheme its
// type is registered for. A type with several schemes keeps the one that Serialize
// gives, if it is among them. An [Upgrader] is represented by what it upgrades. A
// type that is not registered is refused with [ErrUnrecognizedType].
func (r *Registry) Represent(m Mount) (*url.URL, error) {
	for !isNil(m) {
		up, ok := m.(*Upgrader)
		if !ok {
			break
		}
		m = up.Underlying()
	}
	if isNil(m) {
		return nil, fmt.Errorf("represent mount: %w (%w)", ErrNoMount, ErrUnrecognizedType)
	}
	typ := reflect.TypeOf(m)
	r.mu.RLock()
	scheme, ok := r.byType[typ]
	r.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("represent mount: %w: %T; register a template of this type first", ErrUnrecognizedType, m)
	}
	if c, ok := m.(*Counting); ok {
		if isNil(c.Mount) {
			return nil, fmt.Errorf("represent mount: %w in a %T", ErrNoMount, m)
		}
		if inner, err := r.Represent(c.Mount); err == nil {
			return ParseURL(scheme + ":" + inner.String())
		}
	}
	s := m.Serialize()
	if s == nil {
		return nil, fmt.Errorf("represent mount: %T has no URL", m)
	}
	u := *s // Serialize may return a URL that the mount goes on using
	r.mu.RLock()
	own, ok := r.byScheme[u.Scheme]
	r.mu.RUnlock()
	switch _, limited := m.(schemeLimiter); {
	case ok && reflect.TypeOf(own) == typ:
	case limited: // another scheme would be another source, or an unencrypted one
		return nil, fmt.Errorf("represent mount: %w: %q for %T; register it", ErrUnrecognizedScheme, u.Scheme, m)
	default:
		u.Scheme = scheme
	}
	return &u, nil
}

// isNil says that there is no mount: nil, or a pointer (or map, or function) in the
// interface that is nil, whose methods would panic.
func isNil(m Mount) bool {
	switch v := reflect.ValueOf(m); v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return v.IsNil()
	}
	return false
}

// clone copies a template.
func clone(template Mount) Mount {
	if c, ok := template.(Cloner); ok {
		// A wrapper that embeds a Cloner has its method, which makes another type.
		if m := c.CloneMount(); reflect.TypeOf(m) == reflect.TypeOf(template) {
			return m
		}
	}
	from := reflect.ValueOf(template).Elem()
	to := reflect.New(from.Type())
	to.Elem().Set(from)
	for i := range from.NumField() {
		if f := to.Elem().Field(i); f.CanSet() {
			if inner, ok := innerMount(f); ok {
				f.Set(reflect.ValueOf(clone(inner)))
			}
		}
	}
	return to.Interface().(Mount)
}

// innerMount returns the mount that field holds, if it holds one that can be cloned.
func innerMount(field reflect.Value) (Mount, bool) {
	if k := field.Kind(); k != reflect.Interface && k != reflect.Pointer || field.IsNil() {
		return nil, false
	}
	m, ok := field.Interface().(Mount)
	if !ok {
		return nil, false
	}
	v := reflect.ValueOf(m)
	return m, v.Kind() == reflect.Pointer && !v.IsNil() && v.Elem().Kind() == reflect.Struct
}

// ParseURL parses a mount's URL from its text. It takes what url.Parse takes and,
// besides, what url.URL's own String makes of a path or of base64 put into the
// Host field, which url.Parse refuses: the predecessor's file and bytes mounts
// wrote themselves that way.
//
//	file://%2Fdata%2Fa%20b.car    Host = "/data/a b.car"
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err == nil {
		return u, nil
	}
	scheme, rest, ok := strings.Cut(text, "://")
	scheme = strings.ToLower(scheme)
	if !ok || !validScheme(scheme) || strings.ContainsAny(rest, "/?#@") {
		return nil, parseError(err)
	}
	host, uerr := url.PathUnescape(rest)
	if uerr != nil {
		return nil, parseError(err)
	}
	return &url.URL{Scheme: scheme, Host: host}, nil
}

// parseError drops the text that did not parse: it may hold a secret.
func parseError(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return malformed(fmt.Errorf("parse mount URL: %w", err))
}
