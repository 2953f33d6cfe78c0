package dagstore

// WithFS puts everything that a store writes on another file system.
var WithFS = withFS

// Suspend keeps a follower from looking at the journal until resume is called.
func Suspend(f *Follower) (resume func()) {
	f.tail.following.Lock()
	return f.tail.following.Unlock
}

// Jumps counts how often a compaction overtook a follower.
func Jumps(f *Follower) int {
	f.tail.mu.Lock()
	defer f.tail.mu.Unlock()
	return f.tail.mu.jumps
}

// WaitForJobs waits for what Close left behind.
func WaitForJobs(d *DAGStore) { d.jobs.Wait() }

// Redact is what is shown of a mount's URL.
var Redact = redact
