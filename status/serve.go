package status

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/dagstore/dagstore"
)

// DefaultAddr is where Serve listens unless it is told.
const DefaultAddr = "127.0.0.1:7070"

// Listen listens at addr, at [DefaultAddr] if that is empty, and on the loopback
// interface if it names no host.
func Listen(addr string) (net.Listener, error) {
	if addr == "" {
		addr = DefaultAddr
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("status: address %q: %w", addr, err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return l, nil
}

// grace is how long callers may go on receiving after the end.
var grace = 2 * time.Second

// Serve serves the status of a store at addr, see [Listen], until ctx ends.
func Serve(ctx context.Context, addr string, s *dagstore.DAGStore, opts ...Option) error {
	l, err := Listen(addr)
	if err != nil {
		return err
	}
	return ServeOn(ctx, l, s, opts...)
}

// ServeOn is Serve on a listener, which it closes. When ctx ends, callers have two seconds
// to receive what is theirs; then their connections are closed, which is no error.
func ServeOn(ctx context.Context, l net.Listener, s *dagstore.DAGStore, opts ...Option) error {
	srv := &http.Server{
		Handler:           Handler(s, opts...),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second, // a History reads the whole journal
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		err := srv.Shutdown(last)
		if errors.Is(err, context.DeadlineExceeded) {
			err = nil // some are slow: that is how it ends for them
		}
		done <- errors.Join(err, srv.Close())
	})
	err := srv.Serve(l)
	if stop() {
		return fmt.Errorf("status: %w", err)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("status: shut down: %w", err)
	}
	return nil
}
