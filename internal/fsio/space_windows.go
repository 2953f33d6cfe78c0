package fsio

import (
	"io/fs"

	"golang.org/x/sys/windows"
)

func (osFS) Space(dir string) (Space, error) {
	name, err := windows.UTF16PtrFromString(dir)
	var free, total uint64
	if err == nil {
		err = windows.GetDiskFreeSpaceEx(name, &free, &total, nil)
	}
	if err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return Space{Free: int64(free), Total: int64(total)}, nil
}
