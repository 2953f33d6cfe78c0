// Package mount says where the bytes of a shard are and how to open them.
//
// A [Mount] is described by its URL and revived from it by a [Registry], which
// keeps one template per URL scheme. What a mount needs but must not write down
// (file systems, credentials, address policies) stays in the registered template;
// the URL carries only what tells one shard's source from another's.
//
//	mount         URL                           reads
//	[FileMount]   file:///abs/a.car, file:a.car a regular file of the operating system
//	[FSMount]     fs:dir/a.car                  a file of the template's fs.FS
//	[BytesMount]  bytes:<base64url>             the bytes in the URL
//	[HTTPMount]   http://…, https://…           an HTTP resource, by ranges where it can
//	[Counting]    counting:<inner URL>          another mount, counting its fetches
//
// For each of them, and for any legal path or content,
//
//	Instantiate(Represent(m)) = m
//
// A mount that can only be streamed is made seekable by an [Upgrader], which keeps
// one complete local copy and lets all who want it share one fetch.
//
// Package mount/mounttest is the conformance suite for mounts.
package mount
