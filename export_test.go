package dagstore

// WithFS puts everything that a store writes on another file system.
var WithFS = withFS
