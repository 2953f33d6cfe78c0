//go:build planted

package planted

import "os"

var chosen = os.Getenv("DAGSTORE_PLANT")

// Bug says whether the mistake called name is to be made.
func Bug(name string) bool { return name == chosen }
