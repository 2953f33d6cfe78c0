package mount_test

import (
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/throttle"
)

// The predecessor's signature, by type.
var _ func(mount.Mount, throttle.Throttler, string, string, string) (*mount.Upgrader, error) = mount.Upgrade
