package main

// bug is one mistake that can be planted: planted.Bug(name) is where.
type bug struct {
	name   string
	breaks string   // what is wrong with it
	pkg    string   // the package of the test that must find it, from the root of the module
	run    string   // the name of that test; several with |
	args   []string // flags that make it quick
	rows   string   // the promises that it breaks
}

var quickSim = []string{"-sim.ops", "60000"}

// bugs are in the order of the layers, from the disk up.
var bugs = []bug{
	{"fsio-no-file-sync", "an atomic write does not sync the file before it gets its name",
		"index", "TestCrashesAndFaults", nil, "C5, C6"},
	{"fsio-no-dir-sync", "an atomic write does not sync the directory after the rename",
		"journal", "TestCrashEveryOperation", nil, "C4, C5, C7"},
	{"fsio-rename-before-sync", "an atomic write gives the file its name before its contents are durable",
		"internal/fsio", "TestWriteFileAtomicEveryFault", nil, "C5, C6"},

	{"journal-ack-before-sync", "an append is acknowledged before it is synced",
		"journal", "TestCrashEveryOperation", nil, "C4, F27, G2"},
	{"journal-retry-failed-sync", "a sync that failed is tried again, and its success believed",
		"journal", "TestFailedSyncIsFinal", nil, "C3"},
	{"journal-goes-on-after-unknown", "the journal goes on after an outcome that nobody knows",
		"journal", "TestCrashEveryOperation", nil, "C3, G1"},
	{"journal-no-undo", "a write that failed is not cut off before \"nothing was written\" is said",
		"journal", "TestNothingWasWritten", nil, "C11"},
	{"journal-seal-before-successor", "a segment gets its footer before its successor's name is durable",
		"journal", "TestCrashEveryOperation", nil, "C7, C9"},
	{"journal-keep-torn-tail", "a tear is counted when the journal is opened, but not cut",
		"journal", "TestCrashEveryOperation", nil, "C1"},
	{"journal-adopt-without-rewrite", "a batch that is found is synced, but not written again first",
		"journal", "TestAdoptedIsDurable", nil, "C2, C3"},
	{"journal-adopt-without-dir-sync", "an empty segment that is found is relied on before its name is durable",
		"journal", "TestSuccessorBeforeSeal", nil, "C7, C9"},
	{"journal-rot-taken-for-tear", "rot in what was durable is cut off like a tear",
		"journal", "TestDamageBitFlips", nil, "C10"},
	{"journal-broken-chain-accepted", "a frame whose link to the one before is wrong is accepted",
		"journal", "TestDamageBitFlips|TestDamageForeignSegment|TestDamageFiles|TestFrameBelongs", nil, "C10, I3"},
	{"journal-no-lock", "the lock of the journal is not taken: two writers",
		"journal", "TestLock", nil, "C12"},

	{"index-page-not-checked", "a page of an index is used without looking at its checksum",
		"index", "TestEveryFlippedByte", nil, "C10, F20"},
	{"index-entry-off-by-one", "the lookup returns the entry after the one it found",
		"index", "TestIndexAgainstMap", nil, "I7, I13"},
	{"index-of-another-life-opened", "an index of another shard, or of a former life, is opened",
		"index", "TestMisplacedFile", nil, "F10, F30"},
	{"index-temp-not-swept", "unfinished index files of a crash are left at the start",
		".", "TestTempsSweptAtStart", nil, "C5"},

	{"copy-visible-before-sync", "a local copy gets its name before its contents are durable",
		"mount", "TestUpgraderCrash", nil, "C5, R7"},
	{"copy-no-dir-sync", "a local copy is used before its name is durable",
		"mount", "TestUpgraderCrash|TestUpgraderCalls", nil, "C5, R7"},
	{"copy-partial-not-swept", "unfinished copies of a crash are left at the start",
		"mount", "TestSweepCopies", nil, "C5"},
	{"copy-of-dropped-fetch-shown", "a fetch that was given up makes its copy visible all the same",
		"mount", "TestUpgraderLateFetch|TestUpgraderLateCheck", nil, "F17"},
	{"copy-users-file-removed", "the user's own file is removed together with the copy",
		"mount", "TestUpgraderInitial", nil, "F4"},

	{"fsm-token-counted-twice", "a job takes two tokens of its slot",
		"fsm", "TestModel", nil, "N5"},
	{"fsm-token-leaked-at-failure", "a job that fails keeps its token",
		"fsm", "TestModel", nil, "N5"},
	{"fsm-token-released-twice", "a job that gave its token back early gives it back again at its end",
		"fsm", "TestModel", nil, "N5"},
	{"fsm-wake-up-missed", "a token becomes free and the first in the queue is not woken",
		"fsm", "TestModel", nil, "N8, I10"},
	{"fsm-delivery-not-counted", "of acquires that are served together only the first counts a reference",
		"fsm", "TestModel", nil, "I5"},
	{"fsm-former-life-accepted", "the late result of a job of a former life is accepted",
		"fsm", "TestModel", nil, "F17, N6"},

	{"catalogue-position-forgotten", "the catalogue shows a batch and not its position",
		"projection", "TestCatalogueIsFold", nil, "G4, G9"},

	{"store-answers-before-commit", "callers are answered before their event is in the journal",
		".", "TestSim", quickSim, "F27, I1, I2"},
	{"store-shows-before-durable", "the catalogue shows events before they are durable",
		".", "TestSim", quickSim, "G3"},
	{"store-goes-on-after-unknown", "the store does not become read-only after an outcome that nobody knows",
		".", "TestReadOnly", nil, "C3"},
	{"store-refused-change-kept", "a change that the journal refused is not taken back",
		".", "TestJournalRefuses", nil, "C11, G3"},
	{"store-parked-left-at-close", "Close forgets those who wait",
		".", "TestCloseBounded", nil, "F28, I1"},
	{"store-reference-of-absent-kept", "an accessor that nobody takes any more keeps its reference",
		".", "TestSim", quickSim, "F14, I5"},
	{"store-undelivered-accessor-kept", "an accessor that could not be delivered is not closed",
		".", "TestF14NoDescriptorLeaks", nil, "F14, I5"},
	{"store-destroy-without-sweep", "the files of a destroyed shard are not removed",
		".", "TestF10DestroyTakesAll", nil, "C8, F10"},
	{"store-late-handle-used", "the result of an outdated open is used",
		".", "TestLateOpen", nil, "F17, N6"},
	{"store-recovery-not-resumed", "a recovery that a stop interrupted is not taken up again",
		".", "TestF9RecoveringSurvivesNot", nil, "F9"},
	{"store-closed-twice-counted-twice", "a second Close of an accessor gives back another's reference",
		".", "TestF8SecondClose", nil, "F8, I5"},
}
