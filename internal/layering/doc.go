// Package layering holds the shape of this module by test: which package may import
// which, who may touch files, and what an importer has to link. There is no code to
// import; the rules are in the test, each with its cure.
package layering
