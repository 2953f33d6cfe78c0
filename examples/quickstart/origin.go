package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// origin is an HTTP server on loopback with one CAR file.
type origin struct {
	url    string
	server http.Server
	ready  chan struct{} // closed when it may answer
	done   chan error
	once   sync.Once
	err    error
}

// serve starts an origin, which answers nothing before answer is called.
func serve(car []byte) (*origin, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start an HTTP server on loopback: %w", err)
	}
	o := &origin{url: fmt.Sprintf("http://%s/shard.car", l.Addr()), ready: make(chan struct{}), done: make(chan error, 1)}
	etag := fmt.Sprintf("%q", fmt.Sprintf("%x", sha256.Sum256(car)))
	o.server.ReadHeaderTimeout = 10 * time.Second
	o.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-o.ready:
		case <-r.Context().Done():
			return
		}
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", "application/vnd.ipld.car")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(car))
	})
	go func() { o.done <- o.server.Serve(l) }()
	return o, nil
}

// answer lets the origin answer.
func (o *origin) answer() { close(o.ready) }

// stop ends the server and all its connections.
func (o *origin) stop() error {
	o.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := o.server.Shutdown(ctx); err != nil {
			err = o.server.Close()
			o.err = err
		}
		if err := <-o.done; !errors.Is(err, http.ErrServerClosed) {
			o.err = errors.Join(o.err, err)
		}
	})
	return o.err
}
