package dagstore

type follower struct{}
